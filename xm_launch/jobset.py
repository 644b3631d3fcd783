"""The manifest of a run on Google Kubernetes Engine, as a JobSet.

Pure functions of names: nothing here talks to a cluster. Sources: the JobSet
API (jobset.sigs.k8s.io, jobset.x-k8s.io/v1alpha2) and Google's page "TPUs in
GKE" (cloud.google.com/kubernetes-engine/docs/concepts/tpus).
"""

import re
from collections.abc import Sequence
from typing import Any

from selective_t5x.costs.topologies import Slice
from selective_t5x.errors import UserError

# The port on which process 0 listens for the others (jax.distributed).
COORDINATOR_PORT = 8476
# The port of the chips' runtimes.
_TPU_PORT = 8471
_JOB = 'workers'
# Time to save: from the signal of a preemption to the kill.
_GRACE_SECONDS = 300
# Kubernetes appends to the name, up to 63 characters.
_NAME = re.compile(r'[a-z]([-a-z0-9]{0,38}[a-z0-9])?')


def manifest(
  name: str,
  command: Sequence[str],
  tpu: Slice,
  image: str,
  *,
  namespace: str = 'default',
  max_restarts: int = 10,
) -> dict[str, Any]:
  """Returns a JobSet of one pod a host; all pods start together.

  A pod that fails restarts all of them, up to max_restarts times; training
  resumes from the last checkpoint.

  Args:
    name: name of the JobSet.
    command: the command of every pod; no shell reads it.
    tpu: the slice.
    image: the container image, which contains the suite.
    namespace: Kubernetes' namespace.
    max_restarts: maximum number of restarts of the whole set.

  Raises:
    UserError: Kubernetes would refuse the name.
  """
  check_name(name)
  coordinator = f'{name}-{_JOB}-0-0.{name}:{COORDINATOR_PORT}'
  chips = str(tpu.chips_per_host)
  container = {
    'name': 'train',
    'image': image,
    'command': [_literal(word) for word in command],
    'env': [{'name': 'JAX_COORDINATOR_ADDRESS', 'value': coordinator}],
    'ports': [
      {'containerPort': port} for port in (_TPU_PORT, COORDINATOR_PORT)
    ],
    'resources': {
      'requests': {'google.com/tpu': chips},
      'limits': {'google.com/tpu': chips},
    },
  }
  pod = {
    'restartPolicy': 'Never',  # The set restarts as a whole.
    'terminationGracePeriodSeconds': _GRACE_SECONDS,
    'nodeSelector': {
      'cloud.google.com/gke-tpu-accelerator': tpu.chip.accelerator,
      'cloud.google.com/gke-tpu-topology': tpu.shape,
    },
    'containers': [container],
  }
  job = {
    'parallelism': tpu.hosts,
    'completions': tpu.hosts,
    'completionMode': 'Indexed',
    'backoffLimit': 0,
    'template': {'spec': pod},
  }
  return {
    'apiVersion': 'jobset.x-k8s.io/v1alpha2',
    'kind': 'JobSet',
    'metadata': {
      'name': name,
      'namespace': namespace,
      'annotations': {
        # All pods of the job on one slice, and no others there.
        'alpha.jobset.sigs.k8s.io/exclusive-topology': (
          'cloud.google.com/gke-nodepool'
        ),
      },
    },
    'spec': {
      'failurePolicy': {'maxRestarts': max_restarts},
      'coordinator': {'replicatedJob': _JOB, 'jobIndex': 0, 'podIndex': 0},
      'replicatedJobs': [
        {'name': _JOB, 'replicas': 1, 'template': {'spec': job}}
      ],
    },
  }


def check_name(name: str) -> None:
  """Raises UserError for an invalid name of a Kubernetes object."""
  if not _NAME.fullmatch(name):
    raise UserError(
      f'--name={name}: expected at most 40 lower-case letters, digits and '
      'dashes, a letter first and no dash last'
    )


def _literal(value: str) -> str:
  """Returns a value escaped for Kubernetes, which expands $(NAME)."""
  return value.replace('$', '$$')
