from __future__ import annotations

from hast_lightning.graph.timesteps import is_timestep, of_timestep_alone
from hast_lightning.graph.tracing import trace
from tests.diffusion import loaded


def test_what_depends_on_the_timestep_alone_is_found() -> None:
    graph = trace(loaded().network).graph
    assert [node.name for node in graph.nodes if is_timestep(node)] == ["getitem_1"]
    names = {node.name for node in of_timestep_alone(graph)}
    assert {"getitem_1", "sin", "network_time_2", "network_down_of_time"} <= names
    # The picture's device has a part in the frequencies, which makes them no picture.
    assert not {"inputs", "getitem", "network_stem", "add", "network_head"} & names
