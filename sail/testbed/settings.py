"""What a testbed is made from. The defaults are those of the prototyped study, and every one is in the recipe."""

from typing import Literal

from sail.core.settings import Settings, meaning

MAX_RESPONSE_TOKENS = 24  # the end-of-sequence token included
MAX_POSITIONS = 128


class BuildSettings(Settings):
    """One testbed. Equal settings give equal files, byte for byte, on one machine type."""

    reward: Literal["hump", "linear"] = meaning("hump", "the gold reward of the simulated human")
    seed: int = meaning(0, "names every random stream of the build")
    num_labels: int = meaning(2000, "pairs in prefs.jsonl, one per prompt", ge=1, le=4380)
    num_heldout: int = meaning(300, "preference pairs in prefs_heldout.jsonl, on other prompts", ge=1, le=300)
    num_prompts: int = meaning(3000, "prompts in prompts.jsonl, in no pair", ge=1, le=3000)
    num_demonstrations: int = meaning(2000, "demonstrations in sft.jsonl, on prompts of pairs", ge=1, le=4380)
    tau: float = meaning(1.0, "noise of the human: P(y1 > y2) = sigmoid((r1 - r2) / tau)", gt=0)
    tie: bool = meaning(False, "tie the output layer to the embeddings")
    pretrain_steps: int = meaning(300, "AdamW steps on careless reviews", ge=0)
    sft_steps: int = meaning(80, "AdamW steps on the demonstrations", ge=0)
    batch_size: int = meaning(64, "reviews per step", ge=1)
    pretrain_learning_rate: float = meaning(5e-3, "peak, cosine to zero after a short warm-up", gt=0)
    sft_learning_rate: float = meaning(3e-3, "the same for the second phase", gt=0)
