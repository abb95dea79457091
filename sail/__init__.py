"""sail: online, self-improving alignment of language models, in typed, resumable rounds."""

from sail.results import Round, Run, load_run

__all__ = ["Round", "Run", "load_run"]
