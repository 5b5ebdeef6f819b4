"""The run report: one self-contained HTML file with curves, mistakes, samples, artefacts and setup."""

from resnext_core.report.build import render_report, write_report
from resnext_core.report.model import ReportData, Sample

__all__ = ["ReportData", "Sample", "render_report", "write_report"]
