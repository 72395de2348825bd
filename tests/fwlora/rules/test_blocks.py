"""n blocks part the layers: each site once in n links, layers whole and in a row, all blocks of a size."""

from __future__ import annotations

from itertools import pairwise

import pytest
from hypothesis import given
from hypothesis import strategies as st

from fwlora import AllSites, Blocks
from fwlora.errors import ArgumentError

LEAVES = ["self_attn.q_proj", "self_attn.v_proj", "mlp.2.up", "mlp.10.up"]


@st.composite
def models(draw):
    """Names of sites in order, and for each the layer that it lies in."""
    prefix = draw(st.sampled_from(["", "model.layers.", "transformer.h."]))
    named = draw(st.lists(st.sampled_from(["embed_tokens", "wpe"]), unique=True))
    layers = draw(st.integers(0, 9))
    sites = [(name, name) for name in named]
    for layer in range(layers):
        leaves = draw(st.lists(st.sampled_from(LEAVES), min_size=1, unique=True))
        sites += [(f"{prefix}{layer}.{leaf}", f"{prefix}{layer}") for leaf in leaves]
    if draw(st.booleans()) or not sites:
        sites.append(("lm_head", "lm_head"))
    return dict(sites)


@given(layer_of=models(), data=st.data())
def test_blocks_part_the_sites_into_whole_layers_in_a_row_of_equal_number(layer_of, data):
    """Disjoint, together all, whole, contiguous; sizes differ by at most one."""
    sites, layers = list(layer_of), list(dict.fromkeys(layer_of.values()))
    n = data.draw(st.integers(1, len(layers)))
    blocks = [Blocks(n).active(knot, sites) for knot in range(n)]
    assert [site for block in blocks for site in block] == sites
    of_block = [{layer_of[site] for site in block} for block in blocks]
    assert all(not one & other for one, other in pairwise(of_block))
    sizes = [len(block) for block in of_block]
    assert sum(sizes) == len(layers)
    assert min(sizes) >= 1
    assert max(sizes) - min(sizes) <= 1


@given(layer_of=models(), data=st.data(), knot=st.integers(0, 40))
def test_link_k_trains_block_k_mod_n(layer_of, data, knot):
    n = data.draw(st.integers(1, len(set(layer_of.values()))))
    assert Blocks(n).active(knot, list(layer_of)) == Blocks(n).active(knot % n, list(layer_of))


@given(layer_of=models(), knot=st.integers(0, 40))
def test_one_block_is_all_sites(layer_of, knot):
    assert Blocks(1).active(knot, list(layer_of)) == AllSites().active(knot, list(layer_of))


@given(layer_of=models(), more=st.integers(1, 5))
def test_more_blocks_than_layers_are_refused(layer_of, more):
    layers = len(set(layer_of.values()))
    with pytest.raises(ArgumentError, match=rf"`blocks=Blocks\({layers + more}\)`.* {layers} layer.*from 1 to {layers}"):
        Blocks(layers + more).active(0, list(layer_of))


@pytest.mark.parametrize("n", [0, -1, 1.5, True, "2", None])
def test_number_of_blocks_is_a_whole_number(n):
    with pytest.raises(ArgumentError, match=rf"`Blocks\(n=\.\.\.\)`.*{n}"):
        Blocks(n)


def test_a_number_is_a_component_that_is_nothing_else():
    """A name may hold a digit, as layer1; the first whole number counts, further ones are inside the layer."""
    sites = ["layer1.0.fc2", "layer1.1.fc2", "layer2.0.experts.0.up", "layer2.0.experts.1.up", "fc3"]
    assert [Blocks(4).active(knot, sites) for knot in range(4)] == [sites[:1], sites[1:2], sites[2:4], sites[4:]]
