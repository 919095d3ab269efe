"""The network as it is drawn: what is gone, what is marked, which helper belongs to which op."""

from __future__ import annotations

import json
from dataclasses import replace

import numpy as np
import pytest
import torch
from torch import nn

import bnfold
from bnfold.core import graph as g
from bnfold.core.plan import make_plan
from bnfold.network import INPUT, OUTPUT, Network, NetworkNode, State, draw
from tests.page.support import NASTY, made_up


def padded() -> nn.Sequential:
    torch.manual_seed(2)
    model = nn.Sequential(
        nn.BatchNorm2d(3), nn.Conv2d(3, 4, 3, padding=1), nn.BatchNorm2d(4), nn.ReLU()
    )
    for norm in (model[0], model[2]):
        assert isinstance(norm, nn.BatchNorm2d) and norm.running_mean is not None
        norm.running_mean.normal_()
        norm.bias.data.normal_()
    return model.eval()


def test_a_module_before_and_after() -> None:
    report = bnfold.inspect(padded(), torch.rand(1, 3, 5, 5))
    assert report.network is not None
    before = report.network.before
    assert [(node.kind, node.state) for node in before] == [
        (INPUT, State.PLAIN),
        ("BatchNorm2d", State.KEPT),
        ("Conv2d", State.EDITED),
        ("BatchNorm2d", State.REMOVED),
        ("ReLU", State.PLAIN),
        (OUTPUT, State.PLAIN),
    ]
    assert [node.name for node in before if node.blocker] == ["1"]
    assert [node.item for node in before if node.item] == ["0", "2"]
    after = report.network.after
    assert [node.kind for node in after] == [INPUT, "BatchNorm2d", "Conv2d", "ReLU", OUTPUT]
    assert [node.inputs for node in after] == [(), (0,), (1,), (2,), (3,)]


def test_a_program_has_the_kinds_of_its_nodes() -> None:
    program = torch.export.export(padded(), (torch.rand(1, 3, 5, 5),))
    network = bnfold.inspect(program).network
    assert network is not None
    kinds = [node.kind for node in network.before]
    assert kinds == [INPUT, "batch_norm", "conv2d", "batch_norm", "relu", OUTPUT]


def test_a_helper_without_a_kind_is_part_of_the_op_behind_it() -> None:
    graph = g.Graph()
    x = graph.input((1, 2, 3, 3), "x")
    (c,) = graph.add("add", g.Constant(np.ones((1, 2, 1, 1))), (), [(1, 2, 1, 1)])
    (y,) = graph.add("add", g.Sum((1.0, 1.0)), (x, c), [(1, 2, 3, 3)], kind="Add")
    (z,) = graph.add("alone", g.Max(()), (y,), [(1, 2, 3, 3)])
    graph.output(z, "z")
    nodes = draw(graph, make_plan(graph), []).before
    assert [(node.name, node.kind, node.inputs) for node in nodes] == [
        ("x", INPUT, ()),
        ("add", "Add", (0,)),
        ("alone", "Max", (1,)),
        ("z", OUTPUT, (2,)),
    ]


def test_the_document_keeps_the_network_and_equality_does_not_look_at_it() -> None:
    report = bnfold.inspect(padded(), torch.rand(1, 3, 5, 5))
    again = bnfold.FoldReport.from_json(report.to_json())
    assert again.network == report.network is not None
    assert again.to_html() == report.to_html()
    assert replace(report, network=None) == report


def test_a_document_from_before_it_had_networks_is_read() -> None:
    document = bnfold.inspect(padded(), torch.rand(1, 3, 5, 5)).to_dict()
    del document["network"]
    assert bnfold.FoldReport.from_json(json.dumps(document)).network is None
    document["network"] = None
    assert bnfold.FoldReport.from_json(json.dumps(document)).network is None


BRANCHES = (
    NetworkNode("x", "input"),
    NetworkNode("3x3", "Conv2d", (0,), State.CARRIER),
    NetworkNode("bn", "BatchNorm2d", (1,), State.MERGED, item="bn"),
    NetworkNode("1x1", "Conv2d", (0,), State.MERGED),
    NetworkNode("add", "add", (2, 3), State.MERGED),
    NetworkNode("relu", "ReLU", (4,)),
)


def test_what_was_merged_leaves_its_carrier() -> None:
    assert Network(BRANCHES).after == (
        NetworkNode("x", "input"),
        NetworkNode("3x3", "Conv2d", (0,), State.CARRIER),
        NetworkNode("relu", "ReLU", (1,)),
    )


def test_a_carrier_reads_what_the_first_of_a_chain_read() -> None:
    chain = (
        NetworkNode("x", "input"),
        NetworkNode("first", "Conv2d", (0,), State.MERGED),
        NetworkNode("bn", "BatchNorm2d", (1,), State.MERGED),
        NetworkNode("second", "Conv2d", (2,), State.CARRIER),
        NetworkNode("y", "output", (3,)),
    )
    assert [node.inputs for node in Network(chain).after] == [(), (0,), (1,)]


def test_a_sum_that_keeps_an_operand_reads_it_and_the_carrier() -> None:
    partly = (
        NetworkNode("x", "input"),
        NetworkNode("z", "input"),
        NetworkNode("a", "Conv2d", (0,), State.CARRIER),
        NetworkNode("b", "Conv2d", (0,), State.MERGED),
        NetworkNode("inner", "add", (1, 3), State.REMOVED),
        NetworkNode("outer", "add", (4, 2)),
    )
    assert [node.inputs for node in Network(partly).after] == [(), (), (0,), (1, 2)]


def test_every_state_survives_the_document() -> None:
    made = made_up(40, names=NASTY).network
    assert made is not None
    network = Network((*made.before, *BRANCHES))
    assert {node.state for node in network.before} == set(State)
    assert Network.from_dict(json.loads(json.dumps(network.to_dict()))) == network


@pytest.mark.parametrize("inputs", [[0], [1], [-1], [2, 0]])
def test_a_network_that_runs_backwards_is_refused(inputs: list[int]) -> None:
    nodes = [{"name": "a", "kind": "Conv", "inputs": inputs}, {"name": "b", "kind": "Conv"}]
    with pytest.raises(ValueError, match="'a' reads a node"):
        Network.from_dict({"before": nodes})
