"""The suite's seqio tasks; importing this registers them all.

Registration reads no file, touches no network and trains nothing: that waits
until a data set is built or a vocabulary is used.
"""

from selective_t5x.tasks import (
  c4_json as c4_json,
)
from selective_t5x.tasks import (
  c4_tfds as c4_tfds,
)
from selective_t5x.tasks import (
  copy_task as copy_task,
)
from selective_t5x.tasks import (
  downstream as downstream,
)
from selective_t5x.tasks import (
  lm1b as lm1b,
)
from selective_t5x.tasks import (
  needle_retrieval as needle_retrieval,
)
from selective_t5x.tasks import (
  parity as parity,
)
from selective_t5x.tasks import (
  prefix_lm as prefix_lm,
)
from selective_t5x.tasks import (
  span_corruption as span_corruption,
)
from selective_t5x.tasks import (
  text_files as text_files,
)
from selective_t5x.tasks import (
  token_counting as token_counting,
)
from selective_t5x.tasks import (
  variable_assignment as variable_assignment,
)
from selective_t5x.tasks import (
  wikipedia_sample as wikipedia_sample,
)
from selective_t5x.tasks import (
  wikitext as wikitext,
)
