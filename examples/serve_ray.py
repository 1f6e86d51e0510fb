"""The server in several replicas, on this machine or on a cluster, behind Ray Serve's proxy.

    pip install 'showo_ext[serve]' 'ray[serve]'
    python examples/serve_ray.py --replicas 2 --port 8000

Each replica is a process with an engine and a model of its own, and keeps nothing between requests, so that any of them
can answer any request. One that dies loses the requests that it was at, which get a status of 500 or more; Ray starts
another in its place, as it does where a replica's engine has died, or a step of it hangs (`check_health`). The limit on
bytes, the queue and /metrics are each replica's own.
"""

from __future__ import annotations

import argparse
import os
import signal
import sys

os.environ.setdefault("RAY_USAGE_STATS_ENABLED", "0")  # read by Ray when it starts: nothing is sent to its makers

import ray
from fastapi import FastAPI
from ray import serve

from showo.engine.batching import Engine


def application(
    model: str | None, name: str, device: str, step_seconds: float, key: str | None, replicas: int
) -> serve.Application:
    engines: list[Engine] = []  # one, in the process of a replica

    def build() -> FastAPI:
        """Runs in each replica when it starts."""
        from showo import ShowoPipeline
        from showo.serve.app import create_app

        engines.append(Engine(ShowoPipeline.from_pretrained(model, device=device), step_seconds=step_seconds))
        return create_app(engines[0], name, key=key)

    class Replica:
        def check_health(self) -> None:
            """What Ray asks from time to time: a replica in which it raises three times in a row is replaced."""
            engines[0].check_open()

    resources = {"num_gpus": 1} if device.startswith("cuda") else {"num_cpus": 1}
    deployment = serve.deployment(
        serve.ingress(build)(Replica),  # type: ignore[arg-type]
        name="showo",
        num_replicas=replicas,
        ray_actor_options=resources,
        max_ongoing_requests=100,  # at a replica: as many as the engine lets wait, and what it is at
        health_check_period_s=1,
    )
    return deployment.bind()


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--address", help="of a Ray cluster (default: one that is started here)")
    parser.add_argument("--replicas", type=int, default=2)
    parser.add_argument("--host", default="127.0.0.1")
    parser.add_argument("--port", type=int, default=8000)
    parser.add_argument("--model", help="folder or hub id (default: the bundled model)")
    parser.add_argument("--name", default="showo-tiny", help="what clients call the model")
    parser.add_argument("--device", default="cpu")
    parser.add_argument("--step-timeout", type=float, default=600.0, help="seconds after which a step is stuck")
    arguments = parser.parse_args()
    if arguments.address is None:
        ray.init("local", include_dashboard=False, num_cpus=max(arguments.replicas, os.cpu_count() or 1))
    else:
        ray.init(arguments.address)
    serve.start(http_options={"host": arguments.host, "port": arguments.port})
    key = os.environ.get("SHOWO_API_KEY")
    app = application(
        arguments.model, arguments.name, arguments.device, arguments.step_timeout, key, arguments.replicas
    )
    signal.signal(signal.SIGTERM, lambda *_: sys.exit(0))
    try:
        serve.run(app)
        print(f"{arguments.name} at http://{arguments.host}:{arguments.port}/v1", flush=True)
        while True:
            signal.pause()
    except KeyboardInterrupt:
        pass
    finally:
        serve.shutdown()
        ray.shutdown()


if __name__ == "__main__":
    main()
