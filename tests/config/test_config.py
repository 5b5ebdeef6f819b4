"""Configuration: merging with provenance, types, bounds, YAML both ways, and what is refused in which words."""

from __future__ import annotations

import dataclasses
import itertools
import tracemalloc
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated, Any, Literal

import pytest
import yaml
from hypothesis import given, settings
from hypothesis import strategies as st

from resnext_core.bounds import Above
from resnext_core.config import Config, Layer, load_config, parse_set, read_layer
from resnext_core.errors import UsageError
from resnext_core.jobs.recipes import recipe_path
from resnext_core.plugins import load_plugins


@dataclass(frozen=True, kw_only=True)
class ToyOptions:
    """Options of a backend that is none."""

    threads: int = 1
    device: Literal["cpu", "npu"] = "cpu"
    lanes: Annotated[int | Literal["none", "auto"], Above(0)] = "auto"

    def __post_init__(self) -> None:
        if self.threads > 64:
            raise UsageError("toy.threads must be at most 64")
        if self.threads < 0:
            raise ValueError("threads must not be negative")


def layer(values: dict[Any, Any], source: str = "a file") -> Layer:
    return Layer(source=source, values=values)


def load(*sets: str, **sections: Any) -> Config:
    return load_config([layer(sections), *parse_set(sets)], {"toy": ToyOptions})[0]


def test_defaults_are_those_of_the_dataclasses() -> None:
    config, sources = load_config([])
    assert config == Config()
    assert set(sources.values()) == {"default"}
    assert len(sources) == sum(len(section) for section in Config().to_dict().values())


def test_later_layers_win_and_every_value_knows_its_source() -> None:
    config, sources = load_config(
        [
            layer({"train": {"epochs": 5, "batch_size": 32}, "optimizer": {"lr": 0.5}}, "recipe r"),
            layer({"train": {"epochs": 6}}, "mine.yaml"),
            *parse_set(["train.epochs=7", "augment.scale=[0.5, 1]"]),
        ]
    )
    assert (config.train.epochs, config.train.batch_size, config.optimizer.lr) == (7, 32, 0.5)
    assert config.augment.scale == (0.5, 1.0)
    assert sources["train.epochs"] == "--set train.epochs=7"
    assert sources["train.batch_size"] == "recipe r"
    assert sources["augment.scale"] == "--set augment.scale=[0.5, 1]"
    assert sources["train.keep"] == "default"


def test_an_empty_section_changes_nothing() -> None:
    assert load(train=None, model={}) == load()


@pytest.mark.parametrize("name", sorted(load_plugins().recipes))
def test_recipes_are_valid_and_say_what_they_are(name: str) -> None:
    path = recipe_path(name, load_plugins())
    layer, types = read_layer(path), load_plugins().option_types()
    own = {n for n in layer.values if n not in Config().to_dict()}
    if own - set(types):
        pytest.skip(f"of a backend that is not installed: {', '.join(own)}")
    config, _ = load_config([layer], types)
    assert config != Config()
    assert path.read_text().startswith("# ")


# -- YAML ----------------------------------------------------------------------------------------


def test_round_trip_through_yaml(tmp_path: Path) -> None:
    config = load(
        "train.epochs=3", "optimizer.clip_norm=2", "augment.ratio=[0.5, 2]", "export.formats=[onnx, mindir]",
        "output.name='007'", "toy.device=npu", "data.dir='a: b # c'", "preprocess.mean=[1, 2.5, 3]",
    )  # fmt: skip
    path = tmp_path / "c.yaml"
    path.write_text(config.to_yaml())
    again, sources = load_config([read_layer(path)], {"toy": ToyOptions})
    assert again == config
    assert again.backends["toy"] == ToyOptions(device="npu")
    assert set(sources.values()) == {str(path)}


@settings(max_examples=50, deadline=None, database=None)
@given(
    lr=st.floats(0, 1e6),
    mean=st.tuples(*[st.floats(-1e9, 1e9)] * 3),
    name=st.none() | st.text(st.characters(exclude_categories=["Cs", "Cc"])),
    seed=st.integers(0, 2**63 - 1),
    flip=st.floats(0, 1),
)
def test_round_trip_of_any_value(
    lr: float, mean: tuple[float, float, float], name: str | None, seed: int, flip: float
) -> None:
    config = load(
        optimizer={"lr": lr}, preprocess={"mean": mean}, output={"name": name}, train={"seed": seed},
        augment={"flip": flip},
    )  # fmt: skip
    assert load(**yaml.safe_load(config.to_yaml())) == config


def test_numbers_that_yaml_reads_as_text_are_numbers() -> None:
    assert load("optimizer.lr=1e-4").optimizer.lr == 1e-4
    assert load("optimizer.lr=1").optimizer.lr == 1.0
    assert isinstance(load("optimizer.lr=1").optimizer.lr, float)


@pytest.mark.parametrize(("text", "value"), [("none", "none"), ("auto", "auto"), ("7", 7)])
def test_a_number_or_a_word(text: str, value: int | str) -> None:
    assert load(f"toy.lanes={text}").backends["toy"].lanes == value


# -- refusals ------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("assignment", "says"),
    [
        ("train.epochs=many", "train.epochs: must be an integer, not 'many'"),
        ("train.epochs=2.0", "train.epochs: must be an integer, not 2.0"),
        ("train.epochs=true", "train.epochs: must be an integer, not True"),
        ("optimizer.lr=fast", "optimizer.lr: must be a number, not 'fast'"),
        ("optimizer.lr=true", "optimizer.lr: must be a number, not True"),
        ("optimizer.lr=", "optimizer.lr: must be a number, not None"),
        ("augment.scaled_decode=1", "augment.scaled_decode: must be true or false, not 1"),
        ("output.name=3", "output.name: must be text, not 3"),
        ("augment.scale=[0.5]", "augment.scale: must be a list of 2"),
        ("augment.scale=0.5", "augment.scale: must be a list of 2"),
        ("augment.scale=[a, b]", "augment.scale: must be a number, not 'a'"),
        (
            "schedule.kind=cosine",
            "must be one of cosine-epoch, cosine-step, linear, one-cycle, step, constant, not 'cosine'",
        ),
        ("train.best=top2", "must be one of top1, top5, balanced_accuracy, macro_f1, not 'top2'"),
        ("schedule.kind=cosin-step", "did you mean 'cosine-step'?"),
        ("train.epochs=0", "train.epochs must be above 0, not 0"),
        ("train.batch_size=-8", "train.batch_size must be above 0"),
        ("train.seed=-1", "train.seed must be 0 or more"),
        ("train.seed=9223372036854775808", "train.seed must be below 2^63"),
        ("data.workers=-1", "data.workers must be 0 or more"),
        ("optimizer.lr=.nan", "optimizer.lr must be 0 or more, not nan"),
        ("optimizer.momentum=1.5", "optimizer.momentum must be between 0 and 1"),
        ("optimizer.clip_norm=0", "optimizer.clip_norm must be above 0, or null"),
        ("augment.scale=[0, 1]", "augment.scale must be two shares 0 < low <= high <= 1"),
        ("augment.scale=[0.9, 0.1]", "augment.scale must be two shares"),
        ("augment.ratio=[2, 1]", "augment.ratio must be two ratios"),
        ("augment.color_jitter=[0, 0, 2]", "augment.color_jitter must be three numbers between 0 and 1"),
        ("preprocess.std=[1, 0, 1]", "preprocess.std must be three numbers above 0"),
        ("preprocess.std=[1, .inf, 1]", "preprocess.std must be finite"),
        ("preprocess.mean=[1, .nan, 1]", "preprocess.mean must be finite"),
        ("toy.threads=65", "toy.threads must be at most 64"),
        ("toy.threads=-1", "config section 'toy': threads must not be negative"),
        ("toy.device=gpu", "toy.device: must be one of cpu, npu"),
        ("toy.lanes=many", "toy.lanes: must be an integer or one of none, auto, not 'many'"),
        ("toy.lanes=true", "toy.lanes: must be an integer or one of none, auto, not True"),
        ("toy.lanes=0", "toy.lanes must be above 0, or one of none, auto, not 0"),
        ("toy.lanes=2147483648", "toy.lanes must be below 2^31"),
        ("trian.epochs=3", "unknown config section 'trian'; did you mean 'train'?"),
        ("train.epoch=3", "unknown config key 'train.epoch'; did you mean 'epochs'?"),
        ("train.zzz=3", "unknown config key 'train.zzz'; known: accumulate, background_saving,"),
        ("backends.toy=3", "unknown config section 'backends'"),
        ("optimizer.lr=[1", "the value is not valid YAML"),
        ("optimizer.lr=2026-99-99", "the value is not valid YAML"),
        ("optimizer.lr", "--set takes section.key=value, got 'optimizer.lr'"),
        ("lr=3", "--set takes section.key=value, got 'lr=3'"),
        ("optimizer.=3", "--set takes section.key=value"),
        ("=3", "--set takes section.key=value"),
        ("optimizer.lr=.inf", "optimizer.lr must be finite, not inf"),
        ("schedule.gamma=.nan", "schedule.gamma must be finite, not nan"),
        ("schedule.milestones=[1, .inf]", "schedule.milestones must be finite"),
        ("train.epochs=2147483648", "train.epochs must be below 2^31"),
        ("train.epochs=99999999999999999999999999", "train.epochs must be below 2^31"),
        ("optimizer.lr=1e999", "optimizer.lr must be finite"),
        ('output.name="a\\0b"', "without a null character"),
    ],
)
def test_a_wrong_assignment_is_one_line_that_names_it(assignment: str, says: str) -> None:
    with pytest.raises(UsageError) as caught:
        load(assignment)
    message = str(caught.value)
    assert says in message
    assert "\n" not in message
    if not says.startswith(("toy.", "config section")):
        assert assignment in message


@pytest.mark.parametrize(
    ("text", "says"),
    [
        ("train: [1, 2]", "section 'train' must be a mapping"),
        ("- a\n- b", "a config file is a mapping of sections, not list"),
        ("just words", "a config file is a mapping of sections, not str"),
        ("train: {epochs: 3", "not valid YAML"),
        ("train: {epochs: 2026-99-99}", "not valid YAML"),
        ("a: &a [*a]\n", "unknown config section 'a'"),
        ("[" * 3_000, "not valid YAML"),
        ("1: {a: 2}", "unknown config section '1'"),
        ("train: {1: 2}", "unknown config key 'train.1'"),
        ("!!python/object/apply:os.system ['true']", "not valid YAML"),
    ],
)
def test_a_wrong_file_is_one_line_that_names_it(tmp_path: Path, text: str, says: str) -> None:
    path = tmp_path / "c.yaml"
    path.write_text(text)
    with pytest.raises(UsageError) as caught:
        load_config([read_layer(path)])
    assert says in str(caught.value)
    assert str(path) in str(caught.value)
    assert "\n" not in str(caught.value)


#: 352 bytes that stand for a thousand million values.
BOMB = "a: &a [lol, lol, lol, lol, lol, lol, lol, lol, lol]\n" + "".join(
    f"{here}: &{here} [{', '.join(['*' + before] * 9)}]\n" for before, here in itertools.pairwise("abcdefghi")
)
#: The same by merging: PyYAML would copy the keys.
MERGED = "a: &a {x: 1}\n" + "".join(
    f"{here}: &{here} {{<<: [{', '.join(['*' + before] * 9)}]}}\n"
    for before, here in itertools.pairwise("abcdefghi")
)


@pytest.mark.parametrize(
    ("text", "says"),
    [
        (BOMB, "more than 10000 values"),
        (MERGED, "more than 10000 values"),
        ("train: {epochs: " + "[" * 20_000, "nested too deeply"),
        ("train: {epochs: " + "9" * 300_000 + "}", "a number of 300000 characters"),
        ("train: {epochs: 0x" + "f" * 300_000 + "}", "a number of 300002 characters"),
        ("train: {epochs: 1" + ":59" * 100_000 + "}", "a number of 300001 characters"),
        (
            "train: {epochs: 0x" + "f" * 300 + "}",
            "train.epochs must be below 2^31, not an integer of 1200 bits",
        ),
        (
            "optimizer: {lr: 0x" + "f" * 300 + "}",
            "optimizer.lr: must be a number, not an integer of 1200 bits",
        ),
        ("train: {epochs: '" + "9" * 300_000 + "'}", "train.epochs: must be an integer, not '999"),
        ("train:\n  ? " + "x" * 200_000 + "\n  : 1", "unknown config key 'train.xxx"),
        ("? " + "x" * 200_000 + "\n: {a: 1}", "unknown config section 'xxx"),
        ("train: [" + "1, " * 5_000 + "]", "section 'train' must be a mapping, not [1, 1"),
        ("export: {formats: [[" + "1, " * 5_000 + "]]}", "export.formats: must be text, not [1, 1"),
        (
            "schedule: {kind: [" + "a, " * 5_000 + "]}",
            "must be one of cosine-epoch, cosine-step, linear, one-cycle, step, constant",
        ),
        ("#" * (2 << 20), "it is larger than 1 MiB"),
        ('output: {name: "\\e[31m\\n", dir: 3}', "output.dir: must be text, not 3"),
        ('output: {tensorboard: "\\e[31m\\n"}', r"must be true or false, not '\x1b[31m\n'"),
        ('"tr\\ein": {a: 1}', r"unknown config section 'tr\x1bin'"),
    ],
)
def test_a_small_file_that_stands_for_a_large_one_costs_little(tmp_path: Path, text: str, says: str) -> None:
    """The bomb took 10 s, 480 MB and a message of 140 MB; 300,000 hexadecimal digits were a traceback."""
    path = tmp_path / "c.yaml"
    path.write_text(text)
    with pytest.raises(UsageError) as caught:
        load_config([read_layer(path)])
    message = str(caught.value)
    assert says in message
    assert message.isprintable()
    assert len(message) < 600 + len(str(path))


@pytest.mark.parametrize("text", [BOMB, MERGED])
def test_a_bomb_takes_no_memory(tmp_path: Path, text: str) -> None:
    path = tmp_path / "c.yaml"
    path.write_text(text)
    tracemalloc.start()
    with pytest.raises(UsageError):
        load_config([read_layer(path)])
    peak = tracemalloc.get_traced_memory()[1]
    tracemalloc.stop()
    assert peak < 8 << 20, f"{peak >> 20} MiB"


def test_a_huge_value_of_set_is_one_short_line() -> None:
    for value in ("9" * 300_000, "0x" + "9" * 300_000, "x" * 300_000, "[" * 300_000, BOMB):
        with pytest.raises(UsageError) as caught:
            load(f"train.epochs={value}")
        assert len(str(caught.value)) < 600
        assert str(caught.value).isprintable()


def test_values_may_be_repeated_within_reason(tmp_path: Path) -> None:
    path = tmp_path / "c.yaml"
    path.write_text(
        "train: &t {epochs: 3}\neval: {batch_size: &n 8}\noutput: {name: a}\nexport: {batch_size: *n}\n"
    )
    config, _ = load_config([read_layer(path)])
    assert (config.train.epochs, config.eval.batch_size, config.export.batch_size) == (3, 8, 8)


def test_files_that_cannot_be_read(tmp_path: Path) -> None:
    (tmp_path / "binary.yaml").write_bytes(b"\xff\xfe\x00")
    for path, says in (
        (tmp_path / "missing.yaml", "No such file"),
        (tmp_path, "Is a directory"),
        (tmp_path / "binary.yaml", "not a text file"),
    ):
        with pytest.raises(UsageError, match=says):
            read_layer(path)


def test_an_empty_file_is_an_empty_layer(tmp_path: Path) -> None:
    (tmp_path / "c.yaml").write_text("# nothing\n")
    assert read_layer(tmp_path / "c.yaml").values == {}


def test_sections_are_frozen() -> None:
    with pytest.raises(dataclasses.FrozenInstanceError):
        Config().train.epochs = 1  # type: ignore[misc]


def test_a_duplicate_key_is_refused(tmp_path: Path) -> None:
    """PyYAML would take the last one, and the other setting would be lost."""
    path = tmp_path / "twice.yaml"
    path.write_text("train:\n  epochs: 3\n  seed: 1\n  epochs: 300\n")
    with pytest.raises(UsageError, match="line 4: duplicate key 'epochs', first in line 2"):
        read_layer(path)
    path.write_text("train: {epochs: 3}\ntrain: {seed: 1}\n")
    with pytest.raises(UsageError, match="line 2: duplicate key 'train', first in line 1"):
        read_layer(path)
    path.write_text("a: &a {epochs: 3}\ntrain: {<<: *a, epochs: 300}\n")  # what a merge is for
    assert read_layer(path).values["train"] == {"epochs": 300}
