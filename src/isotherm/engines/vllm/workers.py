"""Where vLLM's workers meet the observer: after the model is loaded, and around each step."""

from __future__ import annotations

import logging
from collections.abc import Callable
from typing import TYPE_CHECKING, Any

from isotherm.errors import IsothermError

if TYPE_CHECKING:
    from isotherm.engines.vllm.observer import HeatObserver
    from isotherm.engines.vllm.settings import VllmSettings
    from isotherm.topology import MoEShape, Topology
    from isotherm.traces import HeatRecorder
    from isotherm.window import HeatWindow

logger = logging.getLogger("isotherm")


def observe_workers(settings: VllmSettings) -> None:
    """From here on each worker of this process that loads a model is observed. Called again it does nothing
    more."""
    from vllm.v1.worker.worker_base import WorkerWrapperBase

    from isotherm.heat.ids import warm_up

    if "load_model" in vars(WorkerWrapperBase):
        return
    warm_up()

    # The wrapper has no such method of its own: what it is asked for goes to the worker.
    def load_model(self: Any, *args: Any, **kwargs: Any) -> Any:
        loaded = self.worker.load_model(*args, **kwargs)
        _observe(self.worker, settings)
        return loaded

    WorkerWrapperBase.load_model = load_model


def _observe(worker: Any, settings: VllmSettings) -> None:
    try:
        observer = make_observer(worker, settings)
    except Exception as error:
        logger.error("isotherm: vLLM goes on, and its heat is not observed: %s", error, exc_info=error)
        return
    bind_steps(worker, observer)


def make_observer(worker: Any, settings: VllmSettings) -> HeatObserver:
    """Built on every rank at once, since their collectors are: what one rank cannot do, none can.

    Raises:
        ValueError: a parallelism whose tokens cannot be told apart, or a model without routers.
    """
    import torch.distributed as dist

    from isotherm.engines.vllm.observer import HeatObserver
    from isotherm.engines.vllm.routers import find_routers
    from isotherm.heat import HeatCollector

    parallel = worker.vllm_config.parallel_config
    _check_parallel(parallel)
    routers = find_routers(worker.get_model())
    topology = _topology_of(routers.shape, parallel)
    group = dist.new_group(backend="gloo")
    collector = HeatCollector(
        routers.shape, topology, group, window_steps=settings.window_steps, device=worker.device
    )
    # Only where all ranks have come: one that fails alone before would leave the others waiting for it.
    keepers = window_keepers(worker, routers.shape, topology, settings) if dist.get_rank() == 0 else []

    def keep(window: HeatWindow) -> None:
        for keeper in keepers:
            keeper(window)

    collector.on_window(keep)
    return HeatObserver(
        collector,
        routers,
        window_steps=settings.window_steps,
        counts=dist.get_rank() % parallel.tensor_parallel_size == 0,
        dp_rank=parallel.data_parallel_rank if parallel.data_parallel_size > 1 else None,
        device=worker.device,
    )


def bind_steps(worker: Any, observer: HeatObserver) -> None:
    """Lets the worker tell the observer of each step that computes anything."""
    execute, execute_dummy, shutdown = worker.execute_model, worker.execute_dummy_batch, worker.shutdown

    def execute_model(scheduled: Any, *args: Any, **kwargs: Any) -> Any:
        is_step = observer.begin(scheduled)
        output = execute(scheduled, *args, **kwargs)
        if is_step:
            observer.end()
        return output

    def execute_dummy_batch(*args: Any, **kwargs: Any) -> Any:
        output = execute_dummy(*args, **kwargs)
        observer.end()
        return output

    def close_and_shutdown() -> None:
        observer.close()
        shutdown()

    worker.execute_model, worker.execute_dummy_batch = execute_model, execute_dummy_batch
    worker.shutdown = close_and_shutdown


def _check_parallel(parallel: Any) -> None:
    for name, is_used in (
        ("pipeline parallelism", parallel.pipeline_parallel_size > 1),
        ("prefill context parallelism", parallel.prefill_context_parallel_size > 1),
        ("dual batch overlap", parallel.use_ubatching),
        ("elastic expert parallelism", parallel.enable_elastic_ep),
    ):
        if is_used:
            raise ValueError(f"{name} is not observed: start vLLM without it to collect heat")


def _topology_of(shape: MoEShape, parallel: Any) -> Topology:
    import torch.distributed as dist
    from vllm.distributed.parallel_state import get_node_count

    from isotherm.topology import Topology

    ranks, nodes = dist.get_world_size(), get_node_count()
    slots = shape.experts + parallel.eplb_config.num_redundant_experts
    return Topology(ranks=ranks, slots_per_rank=-(-slots // ranks), nodes=1 if ranks % nodes else nodes)


def window_keepers(
    worker: Any, shape: MoEShape, topology: Topology, settings: VllmSettings
) -> list[Callable[[HeatWindow], None]]:
    """What windows are given to: the heat file, and metrics where they were asked for. One that cannot be had
    (a file of another model, a port that is taken) is left out, with a line in the log."""
    keepers: list[Callable[[HeatWindow], None]] = []
    try:
        keepers.append(_recorder(worker, shape, topology, settings))
    except (OSError, ValueError) as error:
        logger.error("isotherm: heat is not recorded: %s", error)
    if settings.port is not None:
        try:
            keepers.append(_metrics(settings.port))
        except (OSError, IsothermError) as error:
            logger.error("isotherm: metrics are not served at port %d: %s", settings.port, error)
    return keepers


def _recorder(worker: Any, shape: MoEShape, topology: Topology, settings: VllmSettings) -> HeatRecorder:
    from vllm import __version__

    from isotherm.traces import record_to

    path, steps = settings.observed, settings.window_steps
    assert path is not None
    model, engine = str(worker.vllm_config.model_config.model), f"vllm {__version__}"
    recorder = record_to(path, shape, topology, model=model, engine=engine, append=True)
    logger.info(
        "isotherm: heat of %d MoE layers goes to %s, a window every %d steps", shape.layers, path, steps
    )
    return recorder


def _metrics(port: int) -> Callable[[HeatWindow], None]:
    from isotherm.engines.vllm.meters import serve_window_metrics

    return serve_window_metrics(port)
