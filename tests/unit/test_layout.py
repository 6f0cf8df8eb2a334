"""The layout notation, and what a rewrite does to a model."""

import pytest
from hypothesis import given
from hypothesis import strategies as st

import kvcalc
from kvcalc.architecture import Full, Latent, Layer, NoCache, Shared, Sliding, State, Tensor, distinct_layers
from kvcalc.errors import InputError, KVCalcError, UnsupportedError
from kvcalc.layout import Layout, parse_layout
from kvcalc.relayout import with_layout

layouts = st.one_of(
    st.just(Layout(0, 1, None)),
    st.builds(Layout, st.none(), st.none(), st.integers(1, 2**30)),
    st.builds(Layout, st.integers(1, 500), st.integers(0, 500), st.none() | st.integers(1, 2**30)),
)


@given(layouts)
def test_a_layout_reads_back_as_it_was_written(layout):
    assert parse_layout(str(layout)) == layout


@given(st.integers(1, 20), st.integers(0, 20), st.integers(1, 200))
def test_each_block_starts_with_its_local_layers_and_a_partial_block_stays_local(local, global_, layers):
    layout = Layout(local, global_, None)
    kinds = [layout.is_local(index) for index in range(layers)]
    assert kinds == [index % (local + global_) < local for index in range(layers)]
    assert layout.is_local(0)


@pytest.mark.parametrize(
    "text", ["", "5", "5:", ":1", "5:1/", "5:1/1024", "5:1/sw=", "5:1/sw=0", "sw=0", "sw=", "globl", "0:0", "0:1/sw=5",
             "5:1/sw=1/2", "global/sw=5", "1" * 9 + ":1", "999999:999999", "-1:1", "1.5:1"]
)  # fmt: skip
def test_what_is_no_layout_is_refused(text):
    with pytest.raises(InputError):
        parse_layout(text)


def test_a_block_has_at_most_100_000_layers():
    assert parse_layout("99999:1") == Layout(99_999, 1, None)
    with pytest.raises(InputError, match="100,000"):
        parse_layout("100000:1")


def test_every_ratio_without_local_layers_is_global():
    assert parse_layout("0:3") == parse_layout("0:1") == parse_layout("global")
    assert str(parse_layout("0:3")) == "global"
    with pytest.raises(InputError, match="has no layers"):
        parse_layout("0:0")


def test_fewer_local_than_global_layers_get_a_hint():
    assert parse_layout("1:3").hint is not None
    assert parse_layout("1:1").hint is None
    assert parse_layout("global").hint is None


def full(**changes):
    return Full(**{"num_kv_heads": 2, "head_dim": 8, "v_head_dim": 8, **changes})


def model(*layers: Layer) -> kvcalc.Architecture:
    distinct, order = distinct_layers(list(layers))
    return kvcalc.Architecture("m", "m", distinct, order, hidden_size=16, vocab_size=10)


def mixer(elements: int) -> tuple[Tensor, ...]:
    return (Tensor("attention", elements),)


def test_local_and_global_layers_take_each_others_geometry_with_its_weights():
    local = Layer(Sliding(window=4, num_kv_heads=16, head_dim=32, v_head_dim=32), mixer(100))
    global_ = Layer(full(num_kv_heads=4, head_dim=64, v_head_dim=64), mixer(200))
    swapped = with_layout(model(local, local, global_), parse_layout("1:2"))
    assert [swapped.layers[index].cache for index in swapped.order] == [local.cache, global_.cache, global_.cache]
    assert [swapped.layers[index].mixer[0].elements for index in swapped.order] == [100, 200, 200]


def test_a_model_without_local_layers_slides_with_its_global_geometry():
    slid = kvcalc.load("llama-3.1-8b@5:1/sw=1024")
    assert slid.layout == "27 sliding (1024) + 5 full"
    assert slid.model_type == "llama"
    assert kvcalc.load("llama-3.1-8b@global") == kvcalc.load("llama-3.1-8b")


def test_state_and_empty_layers_stay():
    state, empty = Layer(State(recurrent_elements=7)), Layer(NoCache())
    laid = with_layout(model(state, Layer(full()), empty), parse_layout("1:0/sw=4"))
    assert laid.layout == "1 state + 1 sliding (4) + 1 none"


def test_a_shared_layer_follows_a_global_rewrite_and_refuses_to_slide():
    shared = model(Layer(Sliding(4, 2, 8, 8)), Layer(full()), Layer(Shared("sliding")))
    assert with_layout(shared, parse_layout("global")).layout == "2 full + 1 shared"
    assert with_layout(shared, parse_layout("sw=8")).layout == "1 sliding (8) + 1 full + 1 shared"
    with pytest.raises(UnsupportedError, match="read another layer's cache"):
        with_layout(shared, parse_layout("3:1"))


def test_a_latent_layer_refuses_to_slide():
    latent = model(Layer(Latent(rank=8, rope_dim=2, num_heads=2, nope_dim=4, v_head_dim=4)), Layer(full()))
    assert with_layout(latent, parse_layout("global")) == latent
    with pytest.raises(UnsupportedError, match="MLA"):
        with_layout(latent, parse_layout("1:1/sw=4"))


@pytest.mark.parametrize(
    ("layout", "message"), [("1:1", "how wide"), ("sw=4", "no local layers"), ("1:1/sw=4", "no attention layers")]
)
def test_a_rewrite_without_meaning_is_refused(layout, message):
    only_state = model(Layer(State(recurrent_elements=1)))
    with pytest.raises(UnsupportedError, match=message):
        with_layout(only_state, parse_layout(layout))


def test_an_at_sign_in_a_path_is_part_of_the_path(tmp_path):
    folder = tmp_path / "a@b"
    folder.mkdir()
    spec = folder / "m.toml"
    spec.write_text('name = "m"\nnum_layers = 2\nhidden_size = 8\nvocab_size = 9\n[attention]\nnum_heads = 1\n')
    assert kvcalc.load(str(spec)).layout == "2 full"
    assert kvcalc.load(f"{spec}@1:1/sw=4").layout == "1 sliding (4) + 1 full"


@pytest.mark.parametrize("reference", ["", "\0", "x" * 5000, "../../etc/passwd", "a\\b", ".hidden", "no-such-model"])
def test_what_names_no_model_is_refused(reference):
    with pytest.raises(KVCalcError):
        kvcalc.load(reference)
