"""The interpreter on PTX written by hand: what instructions compute, which hazards it notices."""

import math
import struct

import pytest
import torch
from interp import machine, ptx

pytestmark = pytest.mark.timeout(120)  # the core may have to be built

HEAD = """
.version 8.0
.target sm_90a
.address_size 64
.extern .shared .align 16 .b8 global_smem[];
.visible .entry hand(
    .param .u64 .ptr .global .align 1 hand_param_0,
    .param .u64 .ptr .global .align 1 hand_param_1
)
{
    ld.param.b64 %rd1, [hand_param_0];
    ld.param.b64 %rd2, [hand_param_1];
    mov.u32 %r1, %tid.x;
    mul.wide.u32 %rd3, %r1, 4;
    add.s64 %rd4, %rd1, %rd3;
    add.s64 %rd5, %rd2, %rd3;
    shl.b32 %r2, %r1, 2;
"""


def run(body, source=None, out=64, **launch):
    """-> what went wrong, as kinds, and the int32 that the kernel left in its second parameter."""
    source = torch.arange(64, dtype=torch.int32) if source is None else source
    result = torch.full((out,), -1, dtype=torch.int32)
    program = machine.Program(ptx.parse(HEAD + body + "\nret;\n}\n"))
    places = tuple((t.data_ptr(), t.numel() * t.element_size()) for t in (source, result))
    launch = {"shared": 1024, **launch}
    outcome = program.run(machine.Launch((source.data_ptr(), result.data_ptr()), places, **launch))
    return {f.kind for f in outcome.findings}, result


def values(body, source=None, **launch):
    kinds, result = run(body, source, **launch)
    assert kinds == set()
    return result


def floats(*numbers):
    return torch.tensor(numbers * (64 // len(numbers)), dtype=torch.float32).view(torch.int32)


STORE = "st.global.b32 [%rd5], %r9;"


@pytest.mark.parametrize(
    ("code", "wanted"),
    [
        ("add.s32 %r9, %r1, -3;", lambda t: t - 3),
        ("sub.s32 %r3, %r1, 40; shr.s32 %r9, %r3, 2;", lambda t: (t - 40) >> 2),
        ("shl.b32 %r9, %r1, 40;", lambda t: 0 * t),
        ("sub.s32 %r3, %r1, 9; div.s32 %r9, %r3, 4;", lambda t: torch.div(t - 9, 4, rounding_mode="trunc")),
        ("mul.lo.s32 %r9, %r1, 1000003;", lambda t: t * 1000003),
        ("mad.wide.s32 %rd9, %r1, -5, 7; cvt.u32.u64 %r9, %rd9;", lambda t: -5 * t + 7),
        ("mul.wide.u32 %rd9, %r1, 65536; mul.hi.s64 %rd10, %rd9, 281474976710656; cvt.u32.u64 %r9, %rd10;",
         lambda t: t),
        ("bfe.u32 %r9, %r1, 2, 3;", lambda t: (t >> 2) & 7),
        ("bfe.s32 %r9, %r1, 2, 3;", lambda t: (((t >> 2) & 7) ^ 4) - 4),
        ("prmt.b32 %r9, %r1, 171, 0x3340U;", lambda t: t | 171 << 8),
        ("popc.b32 %r9, %r1;", lambda t: sum((t >> n) & 1 for n in range(6))),
        ("setp.lt.s32 %p1, %r1, 20; selp.b32 %r9, 5, 6, %p1;", lambda t: torch.where(t < 20, 5, 6)),
        ("setp.lt.s32 %p1, %r1, 20; mov.b32 %r9, 1; @!%p1 mov.b32 %r9, 2;", lambda t: torch.where(t < 20, 1, 2)),
        ("setp.gt.s32 %p1, %r1, 3; setp.lt.s32 %p2, %r1, 9; and.pred %p3, %p1, %p2; selp.b32 %r9, 1, 0, %p3;",
         lambda t: ((t > 3) & (t < 9)).int()),
        ("mov.b32 {%rs1, %rs2}, %r1; mov.b32 %r9, {%rs2, %rs1};", lambda t: t << 16),
        ("shfl.sync.bfly.b32 %r9, %r1, 5, 31, -1;", lambda t: t ^ 5),
        ("shfl.sync.up.b32 %r9, %r1, 2, 0, -1;", lambda t: torch.where(t % 32 < 2, t, t - 2)),
        ("shfl.sync.idx.b32 %r9, %r1, 3, 31, -1;", lambda t: t // 32 * 32 + 3),
        ("redux.sync.max.s32 %r9, %r1, -1;", lambda t: t // 32 * 32 + 31),
        ("redux.sync.add.s32 %r9, %r1, -1;", lambda t: torch.where(t < 32, 496, 1520)),
        ("ld.param.s32 %rd9, [hand_param_0]; shr.s64 %rd10, %rd9, 62; mov.b32 %r9, 0;", lambda t: 0 * t),
    ],
)  # fmt: skip
def test_integers(code, wanted):
    got = values(code + STORE, warps=2)
    assert torch.equal(got, wanted(torch.arange(64, dtype=torch.int32)).int())


def test_float32_rounds_as_ieee_says():
    x = torch.randn(64).view(torch.int32)
    square = values("ld.global.b32 %r3, [%rd4]; fma.rn.f32 %r9, %r3, %r3, 0fBF800000;" + STORE, x, warps=2)
    exact = (x.view(torch.float32).double() ** 2 - 1).float()
    assert torch.equal(square.view(torch.float32), exact)


def test_comparisons_with_nan():
    x = floats(1.0, math.nan)
    for name, wanted in (("setp.lt", 0), ("setp.ltu", 1), ("setp.neu", 1), ("setp.ne", 0), ("setp.nan", 1)):
        code = f"ld.global.b32 %r3, [%rd4]; {name}.f32 %p1, %r3, 0f3F800000; selp.b32 %r9, 1, 0, %p1;"
        assert values(code + STORE, x, warps=2)[1] == wanted, name


def test_min_and_max_return_the_number_beside_a_nan():
    x = floats(-2.0, math.nan)
    got = values("ld.global.b32 %r3, [%rd4]; max.f32 %r9, %r3, 0fBF800000;" + STORE, x, warps=2).view(torch.float32)
    assert got[:2].tolist() == [-1, -1]


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16])
def test_conversions_to_16_bits_and_back(dtype):
    kind = "f16" if dtype == torch.float16 else "bf16"
    x = torch.cat(
        [torch.randn(60) * 10.0 ** torch.randint(-6, 6, (60,)), torch.tensor([0.0, -0.0, math.inf, -math.inf])]
    )
    code = f"ld.global.b32 %r3, [%rd4]; cvt.rn.{kind}.f32 %rs1, %r3; cvt.f32.{kind} %r9, %rs1;"
    got = values(code + STORE, x.view(torch.int32), warps=2).view(torch.float32)
    assert torch.equal(got, x.to(dtype).float())


def test_approximate_instructions_err_within_what_is_documented():
    x = torch.linspace(-20, 20, 64)
    errors = []
    for gpu in range(4):
        code = "ld.global.b32 %r3, [%rd4]; ex2.approx.ftz.f32 %r9, %r3;" + STORE
        got = values(code, x.view(torch.int32), warps=2, gpu=gpu).view(torch.float32).double()
        errors.append((got / torch.exp2(x.double()) - 1).abs().max().item())
    assert 2.0**-24.1 < max(errors) <= 2.0**-22.5


def test_a_loop_that_lanes_leave_at_different_times():
    body = """
    mov.b32 %r9, 0;
    mov.b32 %r3, 0;
$L__loop:
    add.s32 %r9, %r9, %r3;
    add.s32 %r3, %r3, 1;
    setp.le.s32 %p1, %r3, %r1;
    @%p1 bra $L__loop;
    shfl.sync.bfly.b32 %r4, %r9, 1, 31, -1;
    add.s32 %r9, %r9, %r4;
    """
    t = torch.arange(64)
    sums = t * (t + 1) // 2
    assert values(body + STORE, warps=2).tolist() == (sums + sums[t ^ 1]).tolist()


SHARE = "add.s32 %r3, %r2, 128; and.b32 %r3, %r3, 255; st.shared.b32 [%r2], %r1; {} ld.shared.b32 %r9, [%r3];" + STORE


def test_shared_memory_behind_a_barrier():
    assert values(SHARE.format("bar.sync 0;"), warps=2).tolist() == [(t + 32) % 64 for t in range(64)]


def test_a_race_between_warps():
    assert "race" in run(SHARE.format(""), warps=2)[0]


def test_a_race_within_a_warp():
    code = "xor.b32 %r3, %r2, 4; st.shared.b32 [%r2], %r1; {} ld.shared.b32 %r9, [%r3];" + STORE
    assert "race" in run(code.format(""))[0]
    assert run(code.format("bar.warp.sync -1;"))[0] == set()


def test_a_write_that_overtakes_a_read():
    code = "st.shared.b32 [%r2], %r1; bar.sync 0; add.s32 %r3, %r2, 128; and.b32 %r3, %r3, 255; "
    code += "ld.shared.b32 %r9, [%r3]; {} st.shared.b32 [%r2], 7;" + STORE
    assert "race" in run(code.format(""), warps=2)[0]
    assert run(code.format("bar.sync 0;"), warps=2)[0] == set()


def test_a_race_between_ctas():
    assert "race" in run("mov.u32 %r9, %ctaid.x; st.global.b32 [%rd5], %r9;", grid=(2, 1, 1))[0]
    apart = "mov.u32 %r9, %ctaid.x; mul.wide.u32 %rd6, %r9, 128; add.s64 %rd7, %rd5, %rd6; st.global.b32 [%rd7], %r9;"
    assert run(apart, grid=(2, 1, 1))[0] == set()


def test_atomics_of_all_ctas_add_up():
    kinds, out = run("red.global.gpu.relaxed.add.u32 [%rd2], 1;", warps=2, grid=(3, 1, 1))
    assert kinds == set()
    assert out[0] == -1 + 2 * 32 * 3


@pytest.mark.parametrize(
    ("kind", "code"),
    [
        ("out of bounds", "ld.global.b32 %r9, [%rd4+256];" + STORE),
        ("out of bounds", "ld.shared.b32 %r9, [%r2+1020];" + STORE),
        ("misaligned", "ld.global.b32 %r9, [%rd4+2];" + STORE),
        ("misaligned", "ld.shared.v2.b32 {%r8, %r9}, [%r2+4];" + STORE),
        (
            "undefined value",
            "ld.shared.b32 %r3, [%r2]; setp.eq.s32 %p1, %r3, 0; @%p1 bra $L__x; mov.b32 %r9, 0;\n$L__x:",
        ),
        ("undefined value", "setp.eq.s32 %p1, %r7, 0; @%p1 st.global.b32 [%rd5], 1;"),
        ("undefined value", "cvt.u64.u32 %rd6, %r7; add.s64 %rd7, %rd5, %rd6; st.global.b32 [%rd7], 1;"),
        ("no end", "$L__x:\nbra.uni $L__x;"),
        ("divergence", "setp.lt.s32 %p1, %r1, 7; @%p1 bra $L__x; bar.sync 0;\n$L__x:"),
        ("divergence", "setp.lt.s32 %p1, %r1, 7; @%p1 bra $L__x; shfl.sync.bfly.b32 %r9, %r1, 1, 31, -1;\n$L__x:"),
        ("deadlock", "setp.lt.s32 %p1, %r1, 32; @%p1 bra $L__x; bar.sync 0;\n$L__x:"),
        (
            "deadlock",
            "setp.lt.s32 %p1, %r1, 32; @%p1 bra $L__x; bar.sync 1;\nbra.uni $L__y;\n$L__x:\nbar.sync 0;\n$L__y:",
        ),
        ("trap", "trap;"),
    ],
)
def test_what_a_gpu_would_stumble_over(kind, code, monkeypatch):
    monkeypatch.setattr(machine, "LIMIT", 10_000)
    assert kind in run(code, warps=2)[0]


def test_what_is_never_written_is_handed_on_and_not_complained_about():
    kinds, out = run("ld.shared.b32 %r9, [%r2];" + STORE)
    assert kinds == set()
    assert out[0].item() == struct.unpack("<i", b"\xc7\xff\xc7\xff")[0]
    taken = (
        "ld.shared.b32 %r3, [%r2]; setp.eq.s32 %p1, %r3, 5; and.pred %p2, %p1, 0; @%p2 mov.b32 %r9, 1; mov.b32 %r9, 2;"
    )
    assert run(taken + STORE)[0] == set()


COPY = "shl.b64 %rd6, %rd3, 2; add.s64 %rd7, %rd1, %rd6; shl.b32 %r3, %r1, 4; setp.lt.s32 %p1, %r1, 16;"
COPY += "@%p1 cp.async.cg.shared.global [%r3], [%rd7], 0x10; "


def test_an_asynchronous_copy():
    rest = "cp.async.commit_group; cp.async.wait_group 0; bar.sync 0; ld.shared.b32 %r9, [%r2];"
    kinds, out = run(COPY + rest + STORE, warps=2)
    assert kinds == set()
    assert out.tolist() == list(range(64))


@pytest.mark.parametrize(
    "rest",
    [
        "cp.async.commit_group; bar.sync 0; ld.shared.b32 %r9, [%r2];",  # no wait
        "cp.async.wait_group 0; bar.sync 0; ld.shared.b32 %r9, [%r2];",  # no commit
        "cp.async.commit_group; cp.async.wait_group 1; bar.sync 0; ld.shared.b32 %r9, [%r2];",  # too early
        "cp.async.commit_group; st.shared.b32 [%r2], 0; cp.async.wait_group 0; bar.sync 0; mov.b32 %r9, 0;",
    ],
)
def test_an_asynchronous_copy_that_is_not_waited_for(rest):
    assert "unfinished copy" in run(COPY + rest + STORE, warps=2)[0]


def test_an_asynchronous_copy_that_others_read_without_a_barrier():
    code = COPY + "cp.async.commit_group; cp.async.wait_group 0; ld.shared.b32 %r9, [%r2];" + STORE
    assert "race" in run(code, warps=2)[0]


def test_unknown_instructions_are_named():
    with pytest.raises(ptx.UnknownPtx, match=r"hand: the interpreter does not know 'tanh\.approx\.f32 %r9, %r1'"):
        run("tanh.approx.f32 %r9, %r1;")
    with pytest.raises(ptx.UnknownPtx, match=r"mbarrier\.init"):
        run("mbarrier.init.shared::cta.b64 [%r2], 1;")
