"""The data stage: a user's source as groups of tokenised responses, the same records a sampler writes."""

from collections.abc import Iterable, Mapping, Sequence
from typing import Any

from transformers import PreTrainedTokenizerBase

from sail.core.artifacts import Artifact, Leaf
from sail.core.errors import UserError
from sail.core.records import DatasetRating, DatasetVerdict, Message, Prompt, Sample, SampleGroup, content_hash
from sail.core.run_settings import DataSettings
from sail.core.store import Builder, Recipe, Workspace
from sail.generation.source_rows import SourceRow
from sail.generation.sources import read_source
from sail.policy.chat import prompt_ids, response_ids
from sail.policy.loading import Checkpoint, context_length, eos_ids, load_tokenizer

VERSION = 4


def import_data(
    builder: Builder,
    name: str,
    source: DataSettings,
    files: Leaf,
    *,
    model: Checkpoint,
    chat_template: Leaf | None,
    chat_template_kwargs: Mapping[str, Any],
    max_length: int | None,
) -> Artifact:
    """Tokenise source `name` with the policy's tokenizer: tables groups, verdicts and ratings."""

    def run(workspace: Workspace) -> dict[str, int]:
        where = f"data.{name}"
        rows = read_source(source, files, where)
        tokenizer = load_tokenizer(model, chat_template)
        length = max_length or context_length(model)
        importer = _Importer(name, tokenizer, chat_template_kwargs, eos_ids(model, tokenizer), length)
        for number, row in enumerate(rows):
            importer.add(row, f"{where}, row {source.offset + number}", drop_overlong=source.overlong == "drop")
        if not importer.groups:
            raise UserError("every row is longer than the context", where=where, cure="Raise max_length")
        workspace.write("groups", list(importer.groups.values()), SampleGroup)
        workspace.write("verdicts", importer.verdicts, DatasetVerdict)
        workspace.write("ratings", importer.ratings, DatasetRating)
        return importer.counts()

    settings = source.recipe() | {"source_name": name, "max_length": max_length}
    settings.pop("path")  # the content counts, not where it lies
    if chat_template_kwargs:
        settings["chat_template_kwargs"] = dict(chat_template_kwargs)
    template = {} if chat_template is None else {"chat_template": chat_template}
    return builder.build(Recipe("data", VERSION, settings, {"files": files, "tokenizer": model, **template}), run)


class _Importer:
    """Rows into groups; equal prompts become one group, equal responses of a prompt one sample."""

    def __init__(
        self,
        name: str,
        tokenizer: PreTrainedTokenizerBase,
        template_kwargs: Mapping[str, Any],
        eos: Sequence[int],
        max_length: int,
    ) -> None:
        self.name, self.tokenizer, self.eos, self.max_length = name, tokenizer, eos, max_length
        self.template_kwargs = template_kwargs
        self.groups: dict[str, SampleGroup] = {}
        self.verdicts: list[DatasetVerdict] = []
        self.ratings: list[DatasetRating] = []
        self.overlong = 0
        self.identical = 0

    def add(self, row: SourceRow, where: str, *, drop_overlong: bool) -> None:
        prompt = make_prompt(self.tokenizer, row.prompt, self.template_kwargs)
        samples = [self._sample(prompt, text) for text in row.responses]
        longest = len(prompt.token_ids) + max((len(sample.token_ids) for sample in samples), default=1)
        if longest > self.max_length:
            if not drop_overlong:
                raise UserError(
                    f"{longest} tokens of prompt and response, the context is {self.max_length}",
                    where=where, cure=f"Set data.{self.name}.overlong: drop, or raise max_length",
                )  # fmt: skip
            self.overlong += 1
            return
        self._merge(prompt, samples)
        if row.is_pair:
            self._judge(prompt, samples, row)
        elif samples and (row.thumb is not None or row.scores != (None,)):
            self.ratings.append(DatasetRating(prompt.prompt_id, samples[0].response_id, row.scores[0], row.thumb))

    def _sample(self, prompt: Prompt, text: str) -> Sample:
        ids = response_ids(self.tokenizer, prompt.messages, text, self.eos, self.template_kwargs)
        response_id = f"{prompt.prompt_id}-{content_hash(ids, 10)}"
        return Sample(response_id, f"data:{self.name}", text, ids, (), "dataset", "", 0)

    def _merge(self, prompt: Prompt, samples: Iterable[Sample]) -> None:
        known = self.groups.get(prompt.prompt_id, SampleGroup(prompt, ()))
        by_id = {sample.response_id: sample for sample in (*known.samples, *samples)}
        self.groups[prompt.prompt_id] = SampleGroup(known.prompt, tuple(by_id.values()))

    def _judge(self, prompt: Prompt, samples: Sequence[Sample], row: SourceRow) -> None:
        chosen, rejected = samples
        if chosen.response_id == rejected.response_id:
            self.identical += 1
            return
        self.verdicts.append(
            DatasetVerdict(
                prompt.prompt_id, chosen.response_id, rejected.response_id, row.scores[0], row.scores[1],
                row.p_chosen, row.margin,
            )
        )  # fmt: skip

    def counts(self) -> dict[str, int]:
        return {
            "prompts": len(self.groups), "responses": sum(len(group.samples) for group in self.groups.values()),
            "pairs": len(self.verdicts), "ratings": len(self.ratings),
            "dropped_overlong": self.overlong, "dropped_identical": self.identical,
        }  # fmt: skip


def make_prompt(
    tokenizer: PreTrainedTokenizerBase, messages: Sequence[Message], template_kwargs: Mapping[str, Any]
) -> Prompt:
    """A prompt, named by the content of its conversation."""
    turns = tuple(Message(role=turn["role"], content=turn["content"]) for turn in messages)
    return Prompt(f"p-{content_hash(turns)}", turns, prompt_ids(tokenizer, turns, template_kwargs))
