"""Export: the artefact says what it is, and computes what its source does."""

from __future__ import annotations

import os
import shutil
from dataclasses import replace
from pathlib import Path

import pytest

from resnext_core.errors import BackendUnavailable, UsageError
from resnext_core.interfaces import ExportRequest, Predictor, PredictRequest
from resnext_core.model.sidecar import read_sidecar
from resnext_core.model.weights import Manifest, Weights
from resnext_core.testing import cases
from resnext_core.testing.base import ContractBase, server_of

#: Name: network, seed of the weights, request. Networks of one shape with other weights: an exporter that
#: keeps a graph of an earlier call is found.
REQUESTS = {
    "any batch": ("same", 3, ExportRequest(batch_size=None, input="uint8")),
    "float, batch 2": ("same", 4, ExportRequest(batch_size=2, input="float")),
    "batch 3, not folded": ("cifar", 3, ExportRequest(batch_size=3, input="uint8", fold_bn=False)),
    "float input": ("cifar", 4, ExportRequest(batch_size=None, input="float")),
}


class ExportContract(ContractBase):
    """Every exporter of the backend, one after the other; of an artefact that is a folder, the file that is served."""

    @pytest.mark.parametrize("name", REQUESTS)
    def test_artefact_computes_what_its_source_does(self, name: str, tmp_path: Path) -> None:
        network, seed, request = REQUESTS[name]
        source = cases.weights(network, seed)
        pixels = cases.images(network, 5)
        expected = cases.oracle_predictor(source).logits(pixels)
        for path in self._served(self._export_all(source, request, tmp_path)):
            predictor = self._open(path, tensor_input=request.input == "float")
            if request.input == "float":
                logits = predictor.logits_from_tensor(cases.normalized(network, pixels))
                alone = predictor.logits_from_tensor(cases.normalized(network, pixels[:1]))
            else:
                logits, alone = predictor.logits(pixels), predictor.logits(pixels[:1])
            what = f"logits of {path.suffix} ({name})"
            cases.assert_close(logits, expected, cases.TOLERANCE, what)
            cases.assert_close(alone, expected[:1], cases.TOLERANCE, f"{what}, one image")
            self.both_doors(predictor, network, source, what)
            predictor.close()

    def test_formats_that_contain_the_preprocessing(self, tmp_path: Path) -> None:
        """Of ``takes_images``: for one image at a time, and the network in them computes what its source does."""
        source, pixels = cases.weights("cifar"), cases.images("cifar", 3)
        request = ExportRequest(input="image", options=self.backend_options)
        exporters = self.require("exporters")
        if not self.record.takes_images:
            pytest.skip(f"no format of {self.record.id} can contain the preprocessing")
        for name in self.record.takes_images:
            path = tmp_path / self.record.file_name("artefact", name)
            with pytest.raises(UsageError):
                exporters[name](source, path, replace(request, batch_size=2))
            assert not path.exists(), f"{name} was refused and written all the same"
            exporters[name](source, path, request)
            predictor = self._open(path)
            expected = cases.oracle_predictor(source).logits(pixels)
            cases.assert_close(
                predictor.logits(pixels), expected, cases.TOLERANCE, f"logits of {name} (image)"
            )
            predictor.close()

    def test_artefact_carries_its_manifest(self, tmp_path: Path) -> None:
        """In the file, shown by the predictor as `manifest`, or beside it as ``<file>.json``."""
        source = cases.weights("same").replace(origin={"made by": "the kit"}, metrics={"top1": 0.5})
        # names that look as if there were none: the manifest says that they are some
        source = source.replace(classes=tuple(map(str, range(len(source.classes)))), named=True)
        for path in self._export_all(source, ExportRequest(), tmp_path):
            manifest = self._manifest(path)
            assert manifest.spec == source.spec
            assert manifest.preprocess == source.preprocess
            assert manifest.classes == source.classes
            assert manifest.has_names
            assert manifest.digest == source.digest
            assert manifest.origin == source.origin
            assert manifest.metrics == source.metrics

    def test_artefact_is_an_ordinary_file_and_may_be_replaced(self, tmp_path: Path) -> None:
        first, second = cases.weights("cifar", 3), cases.weights("cifar", 4)
        pixels = cases.images("cifar", 2)
        for path in self._export_all(first, ExportRequest(), tmp_path):
            assert os.access(path, os.R_OK | os.W_OK)
            usual = path.parent / "usual"
            usual.touch()
            assert path.stat().st_mode == usual.stat().st_mode, "the mode of the file is not the usual one"
        paths = self._export_all(second, ExportRequest(), tmp_path)
        for path in paths:
            assert self._manifest(path).digest == second.digest
            odd = [p.name for p in path.parent.iterdir() if p.name.startswith(".") or p.suffix == ".tmp"]
            assert not odd, "temporary files were left behind"
        for path in self._served(paths):
            predictor = self._open(path)
            expected = cases.oracle_predictor(second).logits(pixels)
            cases.assert_close(predictor.logits(pixels), expected, cases.TOLERANCE, f"second {path.name}")
            predictor.close()

    def test_export_does_not_modify_the_weights(self, tmp_path: Path) -> None:
        source = cases.weights("cifar")
        own = source.replace(tensors={name: array.copy() for name, array in source.tensors.items()})
        self._export_all(own, ExportRequest(), tmp_path)
        assert own.digest == source.digest, "the exporter wrote into the weights"

    def _export_all(self, source: Weights, request: ExportRequest, folder: Path) -> list[Path]:
        """Write every format that can be written here; skip where none can."""
        exporters = self.require("exporters")
        request = ExportRequest(
            batch_size=request.batch_size,
            input=request.input,
            fold_bn=request.fold_bn,
            options=self.backend_options,
        )
        paths, refusals = [], []
        for name, exporter in exporters.items():
            path = folder / self.record.file_name("artefact", name)
            if path.is_dir():  # of a first export: folders are not replaced
                shutil.rmtree(path)
            try:
                exporter(source, path, request)
            except BackendUnavailable as refusal:  # a format for which this machine lacks the tools
                assert not path.exists(), f"{name} was refused and written all the same"
                refusals.append(f"{name}: {refusal}")
                continue
            assert path.exists(), f"the exporter {name} wrote no {path.name}"
            path = self._file_of(path)
            assert path.stat().st_size > 0
            paths.append(path)
        if not paths:
            self.missing("; ".join(refusals))
        return paths

    def _file_of(self, artefact: Path) -> Path:
        """Return the artefact, or, where it is a folder, the one file in it that a backend serves."""
        if artefact.is_file():
            return artefact
        files = [file for file in sorted(artefact.rglob("*")) if file.is_file()]
        served = [file for file in files if server_of(file, self.record, self.backend_options) is not None]
        assert len(served) == 1, f"{artefact.name} holds {len(served)} files that a backend serves, not one"
        return served[0]

    def _served(self, paths: list[Path]) -> list[Path]:
        """Return the artefacts that an installed backend serves; skip where there are none."""
        served = [path for path in paths if server_of(path, self.record, self.backend_options) is not None]
        if not served:
            pytest.skip(f"no installed backend serves {', '.join(p.suffix for p in paths)} here")
        return served

    def _open(self, path: Path, *, tensor_input: bool = False) -> Predictor:
        server = server_of(path, self.record, self.backend_options)
        assert server is not None
        assert server.predictor is not None
        if server is self.record:
            options = self.backend_options
        else:
            options = None if server.options is None else server.options()
        return server.predictor(
            PredictRequest(
                path=path,
                batch_size=cases.PREDICT_BATCH,
                tensor_input=tensor_input,
                rank=cases.SINGLE,
                options=options,
            )
        )

    def _manifest(self, path: Path) -> Manifest:
        beside = read_sidecar(path)
        if beside is not None:
            return beside
        (path,) = self._served([path])
        predictor = self._open(path)
        manifest = predictor.manifest
        predictor.close()
        assert isinstance(manifest, Manifest), f"{path.name} does not say what it is"
        return manifest
