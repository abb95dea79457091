"""The controlled task: tiny reviews, a policy trained on them, a known gold reward and a simulated human.

`python -m sail.testbed OUT_DIR` writes it out as an ordinary Hugging Face model and JSON-lines data, so that the rest
of the project treats it as any other. The reward is `sail.testbed.gold:hump` or `:linear`. After the experiments of
Gao et al. 2210.10760 and AlpacaFarm 2305.14387: a known reward stands in for people.

    words      the 128 words            tokenizer    word-level, chat template     settings   what a build is made from
    grammar    the automaton            model        Llama, two training phases    prompts    which prompts go where
    writers    careless and careful     sampling     responses at temperature 1    contents   the files
    gold       the rewards              preferences  the simulated human           build      once, whole or not at all
"""
