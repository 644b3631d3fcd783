"""The specification of a run on Vertex AI, as a CustomJob.

These are pure functions of names. Source:
cloud.google.com/vertex-ai/docs/reference/rest, the pages
projects.locations.customJobs, CustomJobSpec and MachineSpec. Which machines a
region offers depends on Vertex AI.
"""

from collections.abc import Sequence
from typing import Any

from selective_t5x.costs.topologies import Slice


def custom_job(
  name: str, command: Sequence[str], tpu: Slice, image: str
) -> dict[str, Any]:
  """Returns a CustomJob with one replica a host.

  Args:
    name: display name in the console.
    command: the command of every replica; no shell reads it.
    tpu: the slice.
    image: the container image, which contains the suite.
  """
  pool = {
    'machineSpec': {
      'machineType': tpu.machine_type,
      'tpuTopology': tpu.shape,
    },
    'replicaCount': tpu.hosts,
    'containerSpec': {'imageUri': image, 'command': list(command)},
  }
  return {
    'displayName': name,
    'jobSpec': {
      'workerPoolSpecs': [pool],
      'scheduling': {'restartJobOnWorkerRestart': True},
    },
  }
