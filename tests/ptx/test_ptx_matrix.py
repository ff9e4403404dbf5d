"""Matrix instructions on PTX written by hand: products, and what a missing wait or fence does."""

import pytest
import torch
from interp import machine, ptx
from test_ptx_core import HEAD

pytestmark = pytest.mark.timeout(120)

# Lane by lane a fragment of each matrix from global memory, as it lies in the registers.
MMA = """
    shl.b32 %r3, %r1, 4; cvt.u64.u32 %rd6, %r3; add.s64 %rd7, %rd1, %rd6;
    ld.global.v4.b32 {%r10, %r11, %r12, %r13}, [%rd7];
    ld.global.v2.b32 {%r14, %r15}, [%rd7+512];
    mov.b32 %r9, 0f3F800000;
    mma.sync.aligned.m16n8k16.row.col.f32.f16.f16.f32 {%r20, %r21, %r22, %r23}, {%r10, %r11, %r12, %r13}, {%r14, %r15},
        {%r9, %r9, %r9, %r9};
    add.s64 %rd8, %rd2, %rd6;
    st.global.v4.b32 [%rd8], {%r20, %r21, %r22, %r23};
""".replace("\n        {%r9", " {%r9")


def launch(body, tensors, **more):
    program = machine.Program(ptx.parse(HEAD + body + "\nret;\n}\n"))
    places = tuple((t.data_ptr(), t.numel() * t.element_size()) for t in tensors)
    return {f.kind for f in program.run(machine.Launch(tuple(p for p, _ in places), places, **more)).findings}


@pytest.mark.parametrize("gpu", range(4))
def test_mma(gpu):
    a, b = torch.randn(16, 16).half(), torch.randn(16, 8).half()
    lanes = torch.zeros(2, 32, 4, 2, dtype=torch.float16)  # A's four registers of each lane, then B's two
    for lane in range(32):
        row, column = lane // 4, lane % 4 * 2
        for n in range(4):
            lanes[0, lane, n] = a[row + 8 * (n % 2), column + 8 * (n // 2) :][:2]
        for n in range(2):
            lanes[1, lane, n] = b[column + 8 * n :, row][:2]
    out = torch.zeros(32, 4)
    assert launch(MMA, (lanes, out), gpu=gpu) == set()
    exact = 1 + a.double() @ b.double()
    for lane in range(32):
        for n in range(4):
            wanted = exact[lane // 4 + 8 * (n // 2), lane % 4 * 2 + n % 2]
            assert abs(out[lane, n] - wanted) < 2.0**-18


# A [64, 16] and B [8, 16], rows of 32 bytes swizzled by 32: each 16 bytes go to the other half
# where bit 7 says so.
FILL = """
    shl.b32 %r3, %r1, 4; shr.u32 %r4, %r3, 3; and.b32 %r4, %r4, 16; xor.b32 %r5, %r3, %r4;
    cvt.u64.u32 %rd6, %r3; add.s64 %rd7, %rd1, %rd6;
    ld.global.v4.b32 {%r10, %r11, %r12, %r13}, [%rd7]; st.shared.v4.b32 [%r5], {%r10, %r11, %r12, %r13};
    setp.lt.s32 %p1, %r1, 16; add.s64 %rd8, %rd7, 2048;
    @%p1 ld.global.v4.b32 {%r14, %r15, %r16, %r17}, [%rd8]; @%p1 st.shared.v4.b32 [%r5+2048], {%r14, %r15, %r16, %r17};
"""
# Start / 16, leading and stride bytes / 16, swizzle of 32 bytes.
A, B = ((at >> 4) | 1 << 16 | (256 >> 4) << 32 | 3 << 62 for at in (0, 2048))
STEPS = {
    "proxy": "fence.proxy.async.shared::cta;",
    "barrier": "bar.sync 0;",
    "fence": "wgmma.fence.sync.aligned;",
    "product": "wgmma.mma_async.sync.aligned.m64n8k16.f32.f16.f16 {%r20,%r21,%r22,%r23}, %rd20, %rd21, 0, 1, 1, 0, 0;",
    "commit": "wgmma.commit_group.sync.aligned;",
    "wait": "wgmma.wait_group.sync.aligned 0;",
}
ZERO = f"mov.b64 %rd20, {A}; mov.b64 %rd21, {B};" + "".join(f"mov.b32 %r{n}, 0;" for n in range(20, 24))
KEEP = "add.s64 %rd9, %rd2, %rd6; st.global.v4.b32 [%rd9], {%r20, %r21, %r22, %r23};"


def product(without=(), before_wait="", after=""):
    a, b, out = torch.randn(64, 16).half(), torch.randn(8, 16).half(), torch.zeros(128, 4)
    source = torch.cat([a, b])
    steps = dict(STEPS, wait=before_wait + STEPS["wait"])
    body = FILL + ZERO + "\n".join(code for name, code in steps.items() if name not in without)
    kinds = launch(body + KEEP + after, (source, out), warps=4, shared=4096)
    got = torch.zeros(64, 8)
    for t in range(128):
        for n in range(4):
            got[t // 32 * 16 + t % 32 // 4 + 8 * (n // 2), t % 4 * 2 + n % 2] = out[t, n]
    return kinds, (got - a.double() @ b.double().T).abs().max()


def test_wgmma():
    kinds, error = product()
    assert kinds == set()
    assert error < 2.0**-18


@pytest.mark.parametrize(
    ("without", "kind"),
    [
        ("wait", "unfinished wgmma"),
        ("commit", "unfinished wgmma"),
        ("fence", "wgmma.fence"),
        ("proxy", "proxy fence"),
        ("barrier", "race"),
    ],
)
def test_wgmma_without_one_of_its_steps(without, kind):
    assert kind in product(without=(without,))[0]


def test_the_source_of_a_wgmma_is_written_before_the_wait():
    assert "unfinished wgmma" in product(before_wait="st.shared.b32 [%r5], 0;")[0]
    assert "race" in product(after="st.shared.b32 [%r5], 0;")[0]  # other warps may not be done yet
    assert product(after="bar.sync 0; st.shared.b32 [%r5], 0;")[0] == set()


def test_accumulators_are_read_before_the_wait():
    assert "unfinished wgmma" in product(before_wait="mov.b32 %r30, %r21;")[0]


def test_matrices_that_ldmatrix_reads_and_stmatrix_writes():
    body = """
    shl.b32 %r3, %r1, 4; cvt.u64.u32 %rd6, %r3; add.s64 %rd7, %rd1, %rd6;
    ld.global.v4.b32 {%r10, %r11, %r12, %r13}, [%rd7]; st.shared.v4.b32 [%r3], {%r10, %r11, %r12, %r13};
    bar.warp.sync -1;
    ldmatrix.sync.aligned.m8n8.x4.trans.shared.b16 {%r20, %r21, %r22, %r23}, [%r3];
    bar.warp.sync -1;
    stmatrix.sync.aligned.m8n8.x4.shared.b16 [%r3], {%r20, %r21, %r22, %r23};
    bar.warp.sync -1;
    ld.shared.v4.b32 {%r10, %r11, %r12, %r13}, [%r3];
    add.s64 %rd8, %rd2, %rd6; st.global.v4.b32 [%rd8], {%r10, %r11, %r12, %r13};
    """
    x, out = torch.randint(0, 1000, (4, 8, 8), dtype=torch.int16), torch.zeros(4, 8, 8, dtype=torch.int16)
    assert launch(body, (x, out), shared=512) == set()
    assert torch.equal(out, x.transpose(1, 2))
    for missing in range(2):  # behind the last, each lane reads the row that it wrote
        parts = body.split("bar.warp.sync -1;")
        parts[missing : missing + 2] = [parts[missing] + parts[missing + 1]]
        assert "race" in launch("bar.warp.sync -1;".join(parts), (x, out), shared=512)
