"""report.html: one page that shows a finished run, whole in one file."""

from __future__ import annotations

from autoft.trainer.report.page import report_html

__all__ = ["report_html"]
