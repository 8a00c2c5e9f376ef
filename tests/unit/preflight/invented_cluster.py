"""Facts of an invented cluster, all healthy, which tests then spoil in one place."""


def healthy_gpu(**changes) -> dict:
    """What nvidia-smi says of a GPU without faults."""
    health = {"driver": "580.65.06", "uncorrected_ecc": 0, "remap_pending": 0, "remap_failed": 0, "reasons": []}
    return health | {"sm_mhz": 1500, "max_sm_mhz": 1980, "temperature_c": 55, "used_mib": 4} | changes


def cluster(num_hosts: int = 64, gpus: int = 8) -> list[dict]:
    """Facts of every task after all phases; host names are node1 and so on, ranks go host by host."""
    facts = []
    for rank in range(num_hosts * gpus):
        host, local_rank = rank // gpus, rank % gpus
        fact = {"rank": rank, "host": f"node{host + 1}", "local_rank": local_rank, "pid": 1000 + rank}
        fact |= {"num_gpus": gpus, "name": "NVIDIA H100 80GB HBM3", "memory_bytes": 85_000_000_000, "uuid": f"{rank}"}
        fact |= {"health": healthy_gpu(), "expects_gpus": True, "clock_s": 1000.0 + 0.001 * (rank % 5)}
        if local_rank == 0:
            fact |= {
                "versions": {"torch": "2.15.0", "NCCL": "2.30.7", "commit": "abc"},
                "disks": {name: {"path": name, "free_bytes": 10**13} for name in ("run folder", "/tmp", "/dev/shm")},
                "open_files": 65536,
                "locked_bytes": None,
                "infiniband": ["mlx5_0"],
                "wrong_files": {},
            }
        fact |= {"multiply_s": 0.002 * (1 + 0.01 * (rank % 5)), "checksum": "00ff", "num_odd": 0}
        fact |= {"loaded_health": healthy_gpu(temperature_c=62)}
        fact |= {"in_host": {"sum_s": 0.001, "gb_s": 300.0 + rank % 3, "is_right": True}}
        neighbors = sorted({(host - 1) % num_hosts, (host + 1) % num_hosts} - {host})
        links = [{"other": f"node{other + 1}", "gb_s": 45.0 + rank % 2, "is_right": True} for other in neighbors]
        facts.append(fact | {"links": links, "all": {"sum_s": 0.01, "gb_s": 40.0, "is_right": True}})
    return facts


def without_gpus(facts: list[dict]) -> list[dict]:
    """The same tasks on machines that have no GPU."""
    gone = ("name", "memory_bytes", "uuid", "health", "loaded_health")
    facts = [{key: value for key, value in fact.items() if key not in gone} for fact in facts]
    return [fact | {"num_gpus": 0, "expects_gpus": False} for fact in facts]
