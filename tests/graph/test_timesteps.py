from __future__ import annotations

from hast_lightning.graph.timesteps import (
    is_timestep,
    of_timestep_alone,
    timesteps_of,
    without_timesteps,
)
from hast_lightning.graph.tracing import trace
from tests.diffusion import loaded
from tests.transformers import graph as other


def test_what_depends_on_the_timestep_alone_is_found() -> None:
    graph = trace(loaded().network).graph
    assert [node.name for node in graph.nodes if is_timestep(node)] == ["getitem_1"]
    names = {node.name for node in of_timestep_alone(graph)}
    assert {"getitem_1", "sin", "network_time_2", "network_down_of_time"} <= names
    # The picture's device has a part in the frequencies, which makes them no picture.
    assert not {"inputs", "getitem", "network_stem", "add", "network_head"} & names


def test_timesteps_have_no_ranges_and_pictures_do() -> None:
    network = trace(loaded().network)
    assert {node.name for node in timesteps_of(network)} == {"getitem_1", "getitem_2", "mul_1"}
    nodes = [node for node in network.graph.nodes if node.name in ("inputs", "mul_1", "sin")]
    assert [node.name for node in without_timesteps(nodes, network)] == ["getitem", "sin"]


def test_a_network_without_timesteps_has_all_ranges() -> None:
    network = other()
    nodes = list(network.graph.nodes)
    assert not timesteps_of(network) and without_timesteps(nodes, network) == nodes
