"""Losses of a single response: one value per response."""

from torch import Tensor

from sail.objectives.responses import Responses, mean_logps


def sft(responses: Responses) -> Tensor:
    """-log pi(y|x) / |y|, shape [B], nats per token, >= 0: supervised fine-tuning on a response.

    Each response weighs the same whatever its length, so the loss of a batch does not depend on how the batch is
    cut into microbatches (the cross-entropy over all tokens of a batch, TRL's `sft`, weighs long responses more).
    A response without tokens has loss 0.
    """
    return -mean_logps(responses)
