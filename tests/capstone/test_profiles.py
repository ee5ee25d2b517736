"""Profiles: every mistake in a manifest is named, with the nearest thing that would have been right."""

import pytest

from nanochat_lib.capstone.profiles import (
    DataConfig,
    Profile,
    fill_config,
    load_profile,
    manifest_path,
)


def write(folder, text):
    path = folder / "course.toml"
    path.write_text(text, encoding="utf-8")
    return path


def test_values_arrive_and_the_rest_keeps_its_default(tmp_path):
    manifest = write(
        tmp_path,
        "[profile.mini]\nabout = 'x'\n[profile.mini.data]\ndocuments = 9\n"
        "[profile.mini.base]\ndepth = 3\nsmear = true\n[profile.mini.base.optim]\nmatrix_lr = 1\n",
    )
    profile = load_profile("mini", manifest)
    assert profile.name == "mini" and profile.about == "x"
    assert profile.data == DataConfig(documents=9)
    assert profile.base.depth == 3 and profile.base.smear is True
    assert profile.base.optim.matrix_lr == 1.0 and type(profile.base.optim.matrix_lr) is float
    assert profile.base.optim.head_lr == Profile("").base.optim.head_lr


def test_a_table_of_one_value_keeps_the_other_rates_of_its_stage(tmp_path):
    """[profile.x.base.optim] must start from what PretrainConfig uses, not from OptimConfig's own defaults."""
    manifest = write(tmp_path, "[profile.mini.base.optim]\nmatrix_lr = 0.5\n")
    rates = load_profile("mini", manifest).base.optim
    assert rates.embedding_lr == Profile("").base.optim.embedding_lr


@pytest.mark.parametrize(
    ("text", "message"),
    [
        (
            "[profile.mini.data]\ndocument = 9",
            r"\[profile.mini.data\] .*'document': did you mean 'doc",
        ),
        ("[profile.mini.dta]\ndocuments = 9", r"\[profile.mini\] .*'dta': did you mean 'data'"),
        ("[profile.mini.data]\ndocuments = '9'", r"profile.mini.data.documents = '9': must be int"),
        ("[profile.mini.data]\ndocuments = true", "documents = True: must be int"),
        ("[profile.mini.data]\ndocuments = 9.5", "documents = 9.5: must be int"),
        ("[profile.mini]\ndata = 3", "profile.mini.data = 3: must be a table"),
        ("[profile.mini.base]\nrecipe = 'modem'", "'modem': must be one of 'classic', 'modern'"),
        ("[profile.mini.base]\nsmear = 'yes'", "must be bool"),
        ("[profile.mini.base]\nzzzz = 1", "'zzzz': known: aspect_ratio, buffer_documents"),
    ],
)
def test_mistakes_are_named(tmp_path, text, message):
    with pytest.raises(ValueError, match=message):
        load_profile("mini", write(tmp_path, text))


def test_unknown_profile_names_the_nearest(tmp_path):
    manifest = write(tmp_path, "[profile.laptop]\n[profile.micro]\n")
    with pytest.raises(
        ValueError, match="no profile 'latpop' in course.toml: did you mean 'laptop'"
    ):
        load_profile("latpop", manifest)
    with pytest.raises(ValueError, match="known: laptop, micro"):
        load_profile("d20", manifest)


def test_missing_manifest_says_what_to_do(tmp_path):
    with pytest.raises(ValueError, match="no .*absent.toml: .*--manifest"):
        load_profile("laptop", tmp_path / "absent.toml")


def test_fill_config_leaves_its_input_alone():
    table = {"documents": 3}
    start = DataConfig()
    assert fill_config(start, table, "x") == DataConfig(documents=3)
    assert start == DataConfig() and table == {"documents": 3}


@pytest.mark.parametrize("name", ["laptop", "micro"])
def test_profiles_of_the_course_load_and_their_sizes_fit(name):
    profile = load_profile(name, manifest_path())
    assert profile.about
    config = profile.base.model_config(profile.tokenizer.vocab_size)
    assert profile.base.loop_config(num_params=1_000_000).micro_batches >= 1
    assert profile.sft.sequence_len <= config.sequence_len
    assert 0 < profile.evaluation.max_tokens < config.sequence_len
