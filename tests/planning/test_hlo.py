# SPDX-License-Identifier: Apache-2.0
import pytest

from florence2_jax.planning import hlo, schedule

COUNTING = """HloModule counting, num_partitions=4

%add_one (p: s32[]) -> s32[] {
  %p = s32[] parameter(0)
  %one = s32[] constant(1)
  ROOT %sum = s32[] add(%p, %one)
}

%inner_body (c: (s32[], f32[8])) -> (s32[], f32[8]) {
  %c = (s32[], f32[8]{0:T(128)}) parameter(0)
  %i = s32[] get-tuple-element(%c), index=0
  %j = s32[] fusion(%i), kind=kLoop, calls=%add_one
  %x = f32[8]{0:T(128)} get-tuple-element(%c), index=1
  %y = f32[8]{0:T(128)} add(%x, %x)
  ROOT %t = (s32[], f32[8]{0:T(128)}) tuple(%j, %y)
}

%inner_condition (d: (s32[], f32[8])) -> pred[] {
  %d = (s32[], f32[8]{0:T(128)}) parameter(0)
  %k = s32[] get-tuple-element(%d), index=0
  %bound = s32[] constant(10)
  ROOT %less = pred[] compare(%k, %bound), direction=LE
}

%outer_body (e: (s32[], f32[8], s32[])) -> (s32[], f32[8], s32[]) {
  %e = (s32[], f32[8]{0:T(128)}, s32[]) parameter(0)
  %n = s32[] get-tuple-element(%e), index=0
  %step = s32[] get-tuple-element(%e), index=2
  %m = s32[] subtract(%n, %step)
  %a = f32[8]{0:T(128)} get-tuple-element(%e), index=1
  %start = s32[] constant(4)
  %s = (s32[], f32[8]{0:T(128)}) tuple(%start, %a)
  %inner = (s32[], f32[8]{0:T(128)}) while(%s), condition=%inner_condition, body=%inner_body
  %b = f32[8]{0:T(128)} get-tuple-element(%inner), index=1
  ROOT %u = (s32[], f32[8]{0:T(128)}, s32[]) tuple(%m, %b, %step)
}

%outer_condition (f: (s32[], f32[8], s32[])) -> pred[] {
  %f = (s32[], f32[8]{0:T(128)}, s32[]) parameter(0)
  %o = s32[] get-tuple-element(%f), index=0
  %zero = s32[] constant(0)
  ROOT %more = pred[] compare(%zero, %o), direction=LT
}

ENTRY %main (q: f32[8]) -> f32[8] {
  %q = f32[8]{0:T(128)} parameter(0)
  %first = s32[] constant(FIRST)
  %copied = s32[] copy(%first)
  %two = s32[] constant(2)
  %v = (s32[], f32[8]{0:T(128)}, s32[]) tuple(%copied, %q, %two)
  %outer = (s32[], f32[8]{0:T(128)}, s32[]) while(%v), condition=%outer_condition, body=%outer_body
  ROOT %w = f32[8]{0:T(128)} get-tuple-element(%outer), index=1
}
"""


def trips(text: str) -> dict[str, int]:
    runs = schedule.walk(hlo.parse(text))
    assert not runs.unknown_loops
    return {run.instruction.name: run.trips for run in runs.executions}


def test_trips_of_nested_loops_multiply():
    # 5, 3, 1 by steps of -2 that the loop carries; 4 to 10 inside.
    found = trips(COUNTING.replace("FIRST", "5"))
    assert (found["q"], found["m"], found["y"]) == (1, 3, 21)


def test_a_loop_that_never_runs_is_counted_zero_times():
    assert trips(COUNTING.replace("FIRST", "0"))["y"] == 0


def test_a_loop_without_a_known_bound_is_named():
    text = COUNTING.replace("constant(FIRST)", 'custom-call(), custom_call_target="Dice"')
    runs = schedule.walk(hlo.parse(text))
    assert runs.unknown_loops == ("outer",)


def test_a_trip_count_given_by_the_compiler_is_believed():
    given = 'body=%outer_body, backend_config={"known_trip_count":{"n":"9"}}'
    text = COUNTING.replace("constant(FIRST)", "custom-call()").replace("body=%outer_body", given)
    assert trips(text)["m"] == 9


@pytest.mark.parametrize(
    ("text", "padded"),
    [
        ("bf16[32,144,64]{2,1,0:T(8,128)(2,1)}", 32 * 144 * 128 * 2),
        ("bf16[32,144,64]{1,2,0:T(8,128)(2,1)}", 32 * 64 * 256 * 2),
        ("f32[3,3,1,512]{3,2,1,0:T(1,128)}", 3 * 3 * 512 * 4),
        ("bf16[3,5]{1,0:T(2,128)(2,1)}", 4 * 128 * 2),
        ("f32[100]{0:T(1024)}", 1024 * 4),
        ("s32[]{:T(128)S(6)}", 128 * 4),
        ("f32[5,7]", 5 * 7 * 4),
        ("u4[16,128]{1,0:T(8,128)(8,1)}", 16 * 128 // 2),
    ],
)
def test_tiles_pad_the_fastest_dimensions(text, padded):
    module = hlo.parse(f"HloModule m\nENTRY %e (p: x) -> x {{\n  ROOT %p = {text} parameter(0)\n}}")
    assert module.entry.root.shapes[0].padded_bytes == padded


def test_attributes_are_read_beside_braces_and_quotes():
    line = (
        "  ROOT %c.1 = (bf16[8,128]{1,0:T(8,128)(2,1)S(1)}, /*index=1*/u32[]{:S(2)}) custom-call("
        '%a, %b.2), custom_call_target="x", output_to_operand_aliasing={{0}: (1, {})}, '
        "metadata={op_name=\"jit(f)/p[\\'w\\']/mul\" stack_frame_id=2}, "
        'backend_config={"n":{"estimated_cycles":"77"},"custom_call_config":{"body":"=, }("}}'
    )
    text = (
        'HloModule m, num_partitions=8\n\nFileNames\n1 "/a/b/davit.py"\n\nFunctionNames\n'
        '1 "Block.__call__"\n2 "loss"\n\nFileLocations\n1 {file_name_id=1 function_name_id=2}\n'
        "2 {file_name_id=1 function_name_id=1}\n\nStackFrames\n"
        "1 {file_location_id=1 parent_frame_id=1}\n2 {file_location_id=2 parent_frame_id=2}\n\n"
        f"ENTRY %e (p: x) -> x {{\n{line}\n}}"
    )
    module = hlo.parse(text)
    root = module.entry.root
    assert (root.name, root.opcode, root.operands) == ("c.1", "custom-call", ("a", "b.2"))
    assert [shape.memory_space for shape in root.shapes] == [hlo.VMEM, 2]
    assert root.attribute("custom_call_target") == '"x"'
    assert root.configured("estimated_cycles") == 77
    assert root.op_name.endswith("/mul")
    assert module.source(root) == ("davit.py:Block.__call__", "davit.py:loss")
    assert module.num_partitions == 8


def test_other_text_is_refused():
    with pytest.raises(ValueError, match="not the text of an HLO module"):
        hlo.parse("module @jit_f {")
