"""YAML as plain data, within bounds: no text runs code, fills the memory or takes minutes."""

from typing import Any

import yaml

from point_rend.utils.errors import shortened

MAX_BYTES = 1_000_000  # of a config file and its bases together; that of a training has 10,000
MAX_FILES = 100  # a config file and its bases, each as often as it is included
MAX_NODES = 20_000  # of them together, aliases written out; that of a training has 1,000
CHARACTERS_PER_NODE = 50  # a long text weighs as much as several nodes
MAX_DEPTH = 32
MAX_DIGITS = 100  # of a number


class Budget:
    """What a config file and its bases may still contain; each reading takes its share."""

    def __init__(self) -> None:
        self.bytes = MAX_BYTES
        self.files = MAX_FILES
        self.nodes = MAX_NODES


def parse_yaml(content: str | bytes, where: str, budget: Budget) -> dict[Any, Any]:
    """Parse a YAML file of keys and values.

    Args:
        content: The file.
        where: Its name for messages.
        budget: Its bounds; the share of the file is taken from it.

    Raises:
        ValueError: If the text is not YAML, has tags that run code, gives a key twice, or exceeds a
            bound.
    """
    budget.bytes -= len(content)
    if budget.bytes < 0:
        raise ValueError(f"{where}: {len(content)} bytes, expected at most {MAX_BYTES} in all")
    try:
        loader = _BoundedLoader(content, budget)
        tree = loader.get_single_data()
    except yaml.MarkedYAMLError as error:
        mark = error.problem_mark or error.context_mark
        line = f", line {mark.line + 1}" if mark else ""
        problem = shortened(str(error.problem).replace("tag:yaml.org,2002:", "!!"))
        if "!!python/" in problem:
            problem += "; configs are data and Python tags in them are refused, never executed"
        raise ValueError(f"{where}{line}: {problem}") from error
    except (yaml.YAMLError, ValueError) as error:
        raise ValueError(f"{where} is not valid YAML: {shortened(str(error))}") from error
    except (LookupError, AttributeError, TypeError, OverflowError) as error:
        # PyYAML, where an explicit tag stands at a value that it does not describe.
        raise ValueError(f"{where} is not valid YAML: a value does not fit its tag") from error
    if not isinstance(tree, dict):
        raise ValueError(f"{where}: expected config keys and values, got {shortened(repr(tree))}")
    return tree


class _BoundedLoader(yaml.SafeLoader):
    """PyYAML's loader of plain data, which measures a text before it builds anything from it."""

    def __init__(self, content: str | bytes, budget: Budget) -> None:
        super().__init__(content)
        self._budget = budget
        self._depth = 0
        self._height = 0  # of the highest part of the node that is being composed
        self._measures: dict[yaml.Node, tuple[int, int]] = {}  # nodes within, levels

    def compose_node(self, parent: yaml.Node | None, index: Any) -> yaml.Node:
        """Compose a node and all nodes below it."""
        event = self.peek_event()
        if isinstance(event, yaml.AliasEvent):
            node = super().compose_node(parent, index)
            if node not in self._measures:
                raise _fault(f"anchor {event.anchor!r} contains itself", event.start_mark)
            size, height = self._measures[node]
            self._take(size, height, event.start_mark)
        else:
            text = event.value if isinstance(event, yaml.ScalarEvent) else ""
            left, highest = self._budget.nodes, self._height
            self._take(1 + len(text) // CHARACTERS_PER_NODE, 1, event.start_mark)
            self._height, self._depth = 0, self._depth + 1
            node = super().compose_node(parent, index)
            height, self._height, self._depth = self._height + 1, highest, self._depth - 1
            self._measures[node] = left - self._budget.nodes, height
            if node.tag.endswith((":int", ":float")) and len(text) > MAX_DIGITS:
                raise _fault(
                    f"a number of {len(text)} characters, expected at most {MAX_DIGITS}",
                    event.start_mark,
                )
        self._height = max(self._height, height)
        return node

    def _take(self, nodes: int, levels: int, mark: yaml.Mark) -> None:
        if self._depth + levels > MAX_DEPTH:
            raise _fault(f"nested too deep, expected at most {MAX_DEPTH} levels", mark)
        self._budget.nodes -= nodes
        if self._budget.nodes < 0:
            raise _fault(
                f"too much data: expected at most {MAX_NODES} keys and values in a config file and "
                "its bases, aliases written out",
                mark,
            )

    def compose_mapping_node(self, anchor: str | None) -> yaml.MappingNode:
        """Compose a mapping. PyYAML would silently keep the last of several equal keys."""
        node = super().compose_mapping_node(anchor)
        first: dict[tuple[str, str], yaml.Node] = {}
        for key, _ in node.value:
            if not isinstance(key, yaml.ScalarNode) or key.tag == "tag:yaml.org,2002:merge":
                continue
            earlier = first.setdefault((key.tag, key.value), key)
            if earlier is not key:
                raise _fault(
                    f"{shortened(key.value)} a second time, after line "
                    f"{earlier.start_mark.line + 1}; the first would be ignored",
                    key.start_mark,
                )
        return node


def _fault(problem: str, mark: yaml.Mark) -> yaml.MarkedYAMLError:
    return yaml.MarkedYAMLError(problem=problem, problem_mark=mark)
