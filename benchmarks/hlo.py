"""What a compiled program of XLA does in an iteration of EM: launches, traffic, decisions."""

import re
from collections import Counter
from collections.abc import Iterator
from dataclasses import dataclass, field
from math import prod
from typing import NamedTuple

BYTES = {"pred": 1, "s8": 1, "u8": 1, "bf16": 2, "f16": 2, "s32": 4, "u32": 4, "f32": 4}
BYTES |= {"s64": 8, "u64": 8, "f64": 8}
# What is known when a program is compiled, or only says where something is.
NO_WORK = {"parameter", "get-tuple-element", "tuple", "constant", "bitcast", "after-all", "iota"}
NO_WORK |= {"partition-id", "replica-id", "opt-barrier", "slice-done", "copy-done", "async-update"}
NO_WORK |= {f"{name}-done" for name in ("async", "all-reduce", "all-gather", "collective-permute")}
COLLECTIVES = ("all-reduce", "all-gather", "all-to-all", "collective-permute", "reduce-scatter")
# Functions of the library whose branch is not taken where products are accurate.
NOT_TAKEN = {"by_both", "by_differences"}


class Instruction(NamedTuple):
    """An instruction: its name, type, operation, and the rest of its line."""

    name: str
    type: str
    operation: str
    rest: str
    is_root: bool

    def computations(self, *keys: str) -> list[str]:
        """The computations that it names under some keys."""
        found = []
        for key in keys:
            for match in re.finditer(rf"\b{key}=(?:\{{([^}}]*)\}}|%?([\w.\-]+))", self.rest):
                names = (match.group(1) or match.group(2)).split(",")
                found += [name.strip().lstrip("%") for name in names]
        return found

    def operands(self) -> list[str]:
        """The names of its operands."""
        depth, end = 0, len(self.rest)
        for i, letter in enumerate(self.rest):
            depth += (letter == "(") - (letter == ")")
            if depth < 0:
                end = i
                break
        return re.findall(r"%([\w.\-]+)", self.rest[:end])

    def n_turns(self) -> int | None:
        """The turns of a loop, if they are known."""
        match = re.search(r'known_trip_count"?:\s*\{\s*"?n"?:\s*"?(\d+)', self.rest)
        return int(match.group(1)) if match else None

    def number(self, key: str) -> int:
        """A number that it says under a key, or 0."""
        match = re.search(rf'\b{key}"?[=:]\s*"?(\d+)', self.rest)
        return int(match.group(1)) if match else 0


@dataclass
class Account:
    """Work in an iteration.

    Attributes:
        launches: instructions that are begun on the device.
        decisions: that the host has to make: loops of unknown length, and branches.
        bytes: read and written in the device's memory.
        cycles: that XLA estimates for a TPU.
        collectives: by name.
        custom_calls: by target.
    """

    launches: int = 0
    decisions: int = 0
    bytes: int = 0
    cycles: int = 0
    collectives: Counter = field(default_factory=Counter)
    custom_calls: Counter = field(default_factory=Counter)


class Module:
    """A compiled program, as the text that XLA has of it.

    Attributes:
        computations: the instructions of each.
    """

    def __init__(self, text: str):
        self.computations = dict(_computations(text))
        self.types = {of.name: of.type for all_of in self.computations.values() for of in all_of}
        self._tables = {name: _table(text, name) for name in _TABLES}

    def iteration(self) -> Account | None:
        """An iteration of the loop of unknown length that has most in it, if there is one."""
        loops = [
            loop
            for instructions in self.computations.values()
            for loop in instructions
            if loop.operation == "while" and loop.n_turns() is None
        ]
        if not loops:
            return None
        return max((self._of_loop(loop) for loop in loops), key=lambda account: account.launches)

    def _of_loop(self, loop: Instruction) -> Account:
        account = Account(decisions=1)
        for name in loop.computations("condition", "body"):
            self._add(name, 1, account)
        return account

    def _add(self, name: str, times: int, account: Account) -> None:
        """Adds a computation that is gone through so many times."""
        for of in self.computations[name]:
            if of.operation == "while":
                n_turns = of.n_turns()
                account.decisions += times * (n_turns is None)
                # The condition of a loop whose turns are known isn't asked.
                for inner in of.computations(*("condition",) * (n_turns is None), "body"):
                    self._add(inner, times * (n_turns or 1), account)
            elif of.operation == "conditional":
                account.decisions += times
                self._add(self._taken(of), times, account)
            elif of.operation in ("call", "async-start") and of.computations("to_apply", "calls"):
                self._add(of.computations("to_apply", "calls")[0], times, account)
            elif of.operation not in NO_WORK:
                account.launches += times
                account.bytes += times * self._traffic(of)
                account.cycles += times * of.number("estimated_cycles")
                if of.operation.removesuffix("-start") in COLLECTIVES:
                    account.collectives[of.operation.removesuffix("-start")] += times
                if of.operation == "custom-call":
                    target = re.search(r'custom_call_target="([^"]+)"', of.rest)
                    account.custom_calls[target.group(1) if target else "?"] += times

    def _taken(self, conditional: Instruction) -> str:
        """The branch with most in it, but for those that are made where products are not enough."""
        keys = ("branch_computations", "true_computation", "false_computation")

        def weight(name: str) -> int:
            if any(NOT_TAKEN & self._functions(of) for of in self.computations[name]):
                return -1
            account = Account()
            self._add(name, 1, account)
            return account.launches

        return max(conditional.computations(*keys), key=weight)

    def _functions(self, of: Instruction) -> set[str]:
        """The last part of the names of the functions that an instruction was traced in."""
        tables, number, found = self._tables, of.number("stack_frame_id"), set()
        while number in tables["StackFrames"]:
            frame = tables["StackFrames"][number]
            place = tables["FileLocations"].get(_entry(frame, "file_location_id"), "")
            name = tables["FunctionNames"].get(_entry(place, "function_name_id"), "")
            found |= set(name.strip('"').split("."))
            # Printed with one added, so that 1 is no frame.
            number = _entry(frame, "parent_frame_id") - 1
        return found

    def _traffic(self, of: Instruction) -> int:
        """Bytes read and written; of what is sliced, or updated in place, only that part."""
        if of.operation == "dynamic-update-slice":
            return 2 * size(self.types.get(of.operands()[1], ""))
        called = of.computations("calls")
        if of.operation in ("slice", "dynamic-slice", "gather"):
            return 2 * size(of.type)
        if of.operation != "fusion" or not called:
            return size(of.type) + sum(size(self.types.get(name, "")) for name in of.operands())
        body = self.computations[called[0]]
        by_name = {inner.name: inner for inner in body}
        root = next((inner for inner in body if inner.is_root), body[-1])
        while root.operation == "bitcast" and root.operands()[0] in by_name:
            root = by_name[root.operands()[0]]
        written = size(of.type)
        if root.operation == "dynamic-update-slice":
            written = size(self.types.get(root.operands()[1], ""))
        inputs = (inner for inner in body if inner.operation == "parameter")
        return written + sum(_read(inner, body) for inner in inputs)


def left_to_the_host(thunks: str) -> int:
    """Loops and branches outside of all graphs, in what XLA lists that a GPU's program consists of.

    Args:
        thunks: the list after XLA's passes, what is inside of another further to the right.
    """
    count, graph = 0, None
    for line in thunks.splitlines():
        if not (found := re.match(r"( *)\d+: (k\w+)", line)):
            continue
        depth, kind = len(found.group(1)), found.group(2)
        if graph is not None and depth > graph:
            continue
        graph = depth if kind == "kCommandBuffer" else None
        count += kind in ("kWhile", "kConditional")
    return count


def size(type_: str) -> int:
    """Bytes of an array in the device's memory, or of all in a tuple; a TPU's own is S(1)."""
    arrays = re.findall(r"\b([a-z]+\d+|pred)\[([\d,]*)\](\{[^}]*S\(1\)[^}]*\})?", type_)
    return sum(
        BYTES[dtype] * prod(int(length) for length in shape.split(",") if length)
        for dtype, shape, on_chip in arrays
        if not on_chip
    )


def _read(parameter: Instruction, body: list[Instruction]) -> int:
    """Bytes of an input that a fusion reads."""
    whole, found = size(parameter.type), 0
    for use in body:
        operands = use.operands()
        if parameter.name not in operands:
            continue
        if use.operation == "bitcast":
            found += _read(use, body)
        elif use.operation in ("dynamic-slice", "slice", "gather"):
            found += size(use.type)
        elif use.operation != "dynamic-update-slice" or operands[0] != parameter.name:
            return whole
    return min(found, whole)


_TABLES = ("FunctionNames", "FileLocations", "StackFrames")


def _table(text: str, name: str) -> dict[int, str]:
    """A table of numbered lines at the head of a module."""
    match = re.search(rf"^{name}\n((?:\d+ .*\n)*)", text, re.MULTILINE)
    lines = match.group(1).splitlines() if match else []
    return {int(number): rest for number, _, rest in (line.partition(" ") for line in lines)}


def _entry(line: str, key: str) -> int:
    match = re.search(rf"{key}=(\d+)", line)
    return int(match.group(1)) if match else 0


def _computations(text: str) -> Iterator[tuple[str, list[Instruction]]]:
    """The computations of a module by name."""
    name, found = None, []
    for line in text.splitlines():
        head = re.match(r"^(?:ENTRY )?%([\w.\-]+) \(.*\{\s*$", line)
        if head:
            name, found = head.group(1), []
        elif line.startswith("}") and name is not None:
            yield name, found
            name = None
        elif name is not None and (match := re.match(r"^\s+(ROOT )?%([\w.\-]+) = (.*)$", line)):
            type_, rest = _type_and_rest(match.group(3))
            if called := re.match(r"([\w\-]+)\((.*)$", rest):
                root = bool(match.group(1))
                found.append(Instruction(match.group(2), type_, *called.groups(), root))


def _type_and_rest(text: str) -> tuple[str, str]:
    """A type, which may be a tuple, and what comes after it."""
    depth = 0
    for i, letter in enumerate(text):
        depth += (letter in "([{") - (letter in ")]}")
        if letter == " " and depth == 0:
            return text[:i], text[i + 1 :]
    return text, ""
