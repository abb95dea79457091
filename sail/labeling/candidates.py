"""Candidates: two responses of one prompt that may become a pair, named by their ids."""

from collections.abc import Sequence
from dataclasses import dataclass

from sail.core.records import DatasetVerdict, Prompt, Sample, content_hash


@dataclass(frozen=True, slots=True)
class Candidate:
    """Responses A and B of a prompt, before anyone says which is better.

    Example: Candidate("pair-9b1d...", prompt, a=sample_0, b=sample_1); `verdict` is what the dataset says of the
    two, and None for responses that no dataset compares.
    """

    pair_id: str
    prompt: Prompt
    a: Sample
    b: Sample
    verdict: DatasetVerdict | None = None

    @property
    def identical(self) -> bool:
        """Both responses are the same tokens."""
        return self.a.token_ids == self.b.token_ids


def pair_id(prompt_id: str, response_ids: Sequence[str], repeat: int = 0) -> str:
    """The id of a pair: a hash of its prompt and its two responses, whichever of them is A.

    repeat counts the verdicts that a dataset gives on the same two responses: 0 for the first.
    """
    return f"pair-{content_hash([prompt_id, sorted(response_ids), repeat])}"
