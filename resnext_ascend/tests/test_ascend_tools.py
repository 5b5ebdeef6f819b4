"""Outputs of npu-smi and hccn_tool as recorded on other people's machines; see samples/README.md."""

from __future__ import annotations

from pathlib import Path

import pytest

from resnext_ascend import artefacts, npu_smi, rank_table
from resnext_core.errors import BackendUnavailable, DataError

SAMPLES = Path(__file__).with_name("samples")


@pytest.mark.parametrize(
    ("file", "version", "chips", "soc_version"),
    [
        ("npu-smi-910a.txt", "21.0.4", [(0, 0, "0000:C1:00.0", 1, 32768), (1, 0, "0000:81:00.0", 1, 32768)],
         "Ascend910A"),
        ("npu-smi-910a-old.txt", "1.8.21", [(0, 0, "0000:C1:00.0", 0, 32768), (1, 0, "0000:81:00.0", 0, 32768)],
         "Ascend910A"),
        ("npu-smi-910b4.txt", "24.1.1", [(0, 0, "0000:C1:00.0", 26838, 32768), (1, 0, "0000:C2:00.0", 29356, 32768)],
         "Ascend910B4"),
        ("npu-smi-310p3-duo.txt", "25.2.0",
         [(2, 0, "0000:01:00.0", 1529, 44280), (2, 1, "0000:01:00.0", 1412, 43693)], "Ascend310P3"),
        ("npu-smi-a3.txt", "25.3.rc1",
         [(0, 0, "0000:9D:00.0", 3180, 65536), (0, 1, "0000:9F:00.0", 2896, 65536)], None),
        ("npu-smi-910b4-1.txt", "25.2.0", [(0, 0, "0000:xx:00.0", 3197, 65536), (1, 0, "0000:xx:00.0", 3197, 65536)],
         "Ascend910B4-1"),
    ],
)  # fmt: skip
def test_chips(file: str, version: str, chips: list[tuple[object, ...]], soc_version: str | None) -> None:
    found_version, found = npu_smi.parse((SAMPLES / file).read_text())
    assert found_version == version
    assert [(c.card, c.chip, c.bus, c.used_mib, c.total_mib) for c in found] == chips
    assert {c.health for c in found} == {"OK"}
    assert {c.soc_version for c in found} == {soc_version}
    if soc_version is not None:
        artefacts.check_soc(soc_version)  # what the table shows can be given to --soc-version


def test_a_table_with_processes_and_without_chips() -> None:
    text = (SAMPLES / "npu-smi-910b4.txt").read_text()
    processes = (
        "| NPU     Chip              | Process id    | Process name             | Process memory(MB)      |\n"
    )
    row = (
        "| 0       0                 | 777           | python                   | 36000                   |\n"
    )
    assert npu_smi.parse(text + processes + row) == npu_smi.parse(text)
    head = "".join(text.splitlines(keepends=True)[:6])
    assert npu_smi.parse(head) == ("24.1.1", ())


@pytest.mark.parametrize("text", ["", "dcmi module initialize failed. ret is -8005\n", "| NPU   Name |\n"])
def test_no_table(text: str) -> None:
    with pytest.raises(DataError, match="npu-smi info shows no table"):
        npu_smi.parse(text)


def test_addresses() -> None:
    assert npu_smi.parse_address((SAMPLES / "hccn-tool-ip.txt").read_text()) == "29.1.112.213"
    with pytest.raises(DataError, match="hccn_tool shows no address: ipaddr:"):
        npu_smi.parse_address("ipaddr:\n")
    found = rank_table.read_hccn(SAMPLES / "hccn.conf")
    assert (len(found), found[0], found[7]) == (8, "192.168.10.21", "192.168.40.22")


def test_the_tools_themselves(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("PATH", f"{tmp_path}:/usr/bin:/bin")
    with pytest.raises(BackendUnavailable, match="npu-smi cannot be run: No such file"):
        npu_smi.read_chips()
    for name, file in (("npu-smi", "npu-smi-310p3-duo.txt"), ("hccn_tool", "hccn-tool-ip.txt")):
        (tmp_path / name).write_text(f"#!/bin/sh\ncat {SAMPLES / file}\n")
        (tmp_path / name).chmod(0o755)
    assert len(npu_smi.read_chips()[1]) == 2
    assert npu_smi.read_address(3) == "29.1.112.213"
    (tmp_path / "npu-smi").write_text(
        "#!/bin/sh\necho 'dcmi module initialize failed. ret is -8005'\nexit 1\n"
    )
    with pytest.raises(
        BackendUnavailable, match=r"ended with 1: dcmi module initialize failed\. ret is -8005"
    ):
        npu_smi.read_chips()
