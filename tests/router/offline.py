"""Compiles the Triton kernel for devices that are not here, and prints for which it could."""

import triton
from triton.backends.compiler import GPUTarget
from triton.compiler import ASTSource

from isotherm.router.triton_kernels import _map_and_count

INT32, INT64 = "*i32", "*i64"


def signature(ids):
    types = dict.fromkeys(_map_and_count.arg_names, "i32")
    types |= {"ids_at": ids, "mapped_at": ids, "state_at": INT64, "ends_at": INT64}
    types |= dict.fromkeys(("offsets_at", "slots_at", "prefill_at", "decode_at", "received_at"), INT32)
    return types | {"FROM_DEVICE": "constexpr", "BLOCK": "constexpr"}


for target in (GPUTarget("cuda", 90, 32), GPUTarget("hip", "gfx942", 64)):
    for ids in (INT32, INT64):
        for from_device in (False, True):
            constants = {"FROM_DEVICE": from_device, "BLOCK": 1024}
            triton.compile(ASTSource(_map_and_count, signature(ids), constexprs=constants), target=target)
    print(target.backend)
