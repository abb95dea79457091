"""The word-level tokenizer and its chat template: one word, one token.

    [user]             ->  <bos> film in paris on monday <sep>                                  (generation prompt)
    [user, assistant]  ->  <bos> film in paris on monday <sep> the film was good . <eos>

So ids(prompt) + ids(response) + [eos] are the ids of the conversation. Only the template writes marks, the tokenizer
itself adds none: whoever tokenizes the rendered text, in whatever way, gets exactly one BOS. <sep> and <unk> are
words like any other, so text shows them where a policy says them, and text encodes back to the ids it came from.
"""

from tokenizers import Tokenizer
from tokenizers.models import WordLevel
from tokenizers.pre_tokenizers import WhitespaceSplit
from transformers import PreTrainedTokenizerFast

from sail.testbed.words import BOS, EOS, PAD, UNK, VOCABULARY

CHAT_TEMPLATE = (
    "{{ bos_token }}"
    "{% for message in messages %}"
    "{% if message['role'] == 'assistant' %}{{ ' <sep> ' + message['content'] + ' ' + eos_token }}"
    "{% else %}{{ ' ' + message['content'] }}{% endif %}"
    "{% endfor %}"
    "{% if add_generation_prompt %}{{ ' <sep>' }}{% endif %}"
)


def build_tokenizer(max_length: int) -> PreTrainedTokenizerFast:
    """The tokenizer of the testbed; id i is VOCABULARY[i]."""
    words = Tokenizer(WordLevel({word: index for index, word in enumerate(VOCABULARY)}, unk_token=UNK))
    words.pre_tokenizer = WhitespaceSplit()
    tokenizer = PreTrainedTokenizerFast(
        tokenizer_object=words,
        bos_token=BOS,
        eos_token=EOS,
        pad_token=PAD,
        model_max_length=max_length,
        padding_side="left",
        clean_up_tokenization_spaces=False,
    )
    tokenizer.chat_template = CHAT_TEMPLATE
    return tokenizer
