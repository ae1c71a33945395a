"""What benchmarks say of a compiled program is counted, not guessed."""

import runpy
from pathlib import Path

import pytest

pytestmark = [pytest.mark.once, pytest.mark.quick]

HLO = runpy.run_path(str(Path(__file__).parents[1] / "benchmarks" / "hlo.py"))

# A loop of unknown length, in which are a loop of three turns and a branch, as XLA writes them.
TEXT = """\
HloModule jit_em

FunctionNames
1 "em"
2 "expected_statistics.<locals>.by_both"

FileLocations
1 {file_name_id=1 function_name_id=1 line=1}
2 {file_name_id=1 function_name_id=2 line=2}

StackFrames
1 {file_location_id=1 parent_frame_id=1}
2 {file_location_id=2 parent_frame_id=2}
3 {file_location_id=1 parent_frame_id=3}

%rows (p.0: (f32[64,4], s32[])) -> (f32[64,4], s32[]) {
  %p.0 = (f32[64,4]{1,0}, s32[]) parameter(0)
  %x.0 = f32[64,4]{1,0} get-tuple-element(%p.0), index=0
  %i.0 = s32[] get-tuple-element(%p.0), index=1
  %chunk = f32[16,4]{1,0} fusion(%x.0, %i.0), kind=kLoop, calls=%read
  ROOT %t.0 = (f32[64,4]{1,0}, s32[]) tuple(%x.0, %i.0)
}

%read (a: f32[64,4], b: s32[]) -> f32[16,4] {
  %a = f32[64,4]{1,0} parameter(0)
  %b = s32[] parameter(1)
  %flat = f32[64,4]{1,0} bitcast(%a)
  ROOT %slice = f32[16,4]{1,0} dynamic-slice(%flat, %b, %b), dynamic_slice_sizes={16,4}
}

%asked (p.1: (f32[64,4], s32[])) -> pred[] {
  %p.1 = (f32[64,4]{1,0}, s32[]) parameter(0)
  ROOT %less = pred[] custom-call(%p.1), custom_call_target="less"
}

%both (p.2: f32[4]) -> f32[4] {
  %p.2 = f32[4]{0} parameter(0)
  %one = f32[4]{0} add(%p.2, %p.2), metadata={op_name="add" stack_frame_id=3}
  %two = f32[4]{0} add(%one, %one), metadata={op_name="add" stack_frame_id=3}
  ROOT %three = f32[4]{0} add(%two, %two), metadata={op_name="add" stack_frame_id=3}
}

%neither (p.3: f32[4]) -> f32[4] {
  %p.3 = f32[4]{0} parameter(0)
  ROOT %same = f32[4]{0} negate(%p.3), metadata={op_name="neg" stack_frame_id=1}
}

%step (p.4: (f32[64,4], s32[])) -> (f32[64,4], s32[]) {
  %p.4 = (f32[64,4]{1,0}, s32[]) parameter(0)
  %loop = (f32[64,4]{1,0}, s32[]) while(%p.4), condition=%asked, body=%rows, backend_config={"known_trip_count":{"n":"3"}}
  %lost = pred[] custom-call(%loop), custom_call_target="lost"
  %sums = f32[4]{0} custom-call(%loop), custom_call_target="sums"
  %kept = f32[4]{0} conditional(%lost, %sums, %sums), branch_computations={%neither, %both}
  %all = f32[4]{0} all-reduce(%kept), replica_groups={{0,1}}, to_apply=%neither
  ROOT %t.4 = (f32[64,4]{1,0}, s32[]) tuple(%all, %lost)
}

ENTRY %main (p.5: (f32[64,4], s32[])) -> (f32[64,4], s32[]) {
  %p.5 = (f32[64,4]{1,0}, s32[]) parameter(0)
  ROOT %em = (f32[64,4]{1,0}, s32[]) while(%p.5), condition=%asked, body=%step
}
"""  # noqa: E501


def test_an_iteration_is_counted_as_it_is_where_products_are_accurate():
    account = HLO["Module"](TEXT).iteration()
    # Asked once, three chunks, what is lost, sums, the branch that isn't `by_both`, a message.
    assert account.launches == 1 + 3 + 1 + 1 + 1 + 1
    # The loop itself and the branch; nobody asks a loop of three turns.
    assert account.decisions == 2
    assert account.collectives == {"all-reduce": 1}
    assert account.custom_calls == {"less": 1, "lost": 1, "sums": 1}


def test_of_what_is_sliced_only_the_part_is_read():
    module = HLO["Module"](TEXT)
    chunk = next(of for of in module.computations["rows"] if of.operation == "fusion")
    assert module._traffic(chunk) == 4 * (16 * 4) + 4 * (16 * 4) + 4


def test_the_size_of_what_stays_on_the_chip_is_not_counted():
    size = HLO["size"]
    assert size("(f32[8,4]{1,0:T(8,128)}, pred[3]{0}, s32[])") == 128 + 3 + 4
    assert size("bf16[8,4]{1,0:T(8,128)(2,1)S(1)}") == 0


# The first loop is part of a graph, of the second one only what it does in a turn.
THUNKS = """\
000: kCommandBuffer [source | next=004]
    001: kWhile        [source | sink]
condition:
        002: kCustomKernel [source | sink] loop_and_fusion
      body:
        003: kConditional  [source | sink]
004: kWhile         [prev=000 | next=000]
condition:
    005: kCustomKernel [source | sink] loop_compare_fusion
  body:
    000: kCommandBuffer [source | sink]
        006: kWhile        [source | sink]
    007: kConditional  [source | sink]
000: kCommandBuffer [prev=004 | sink]
    008: kConditional [source | sink]
"""


def test_what_is_in_no_graph_is_left_to_the_host():
    assert HLO["left_to_the_host"](THUNKS) == 2
    assert HLO["left_to_the_host"](THUNKS.replace("kCommandBuffer", "kSequential")) == 6
