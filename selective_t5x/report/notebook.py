"""The masking viewer in a notebook.

from selective_t5x.report import notebook
notebook.masking_viewer('results/d2', ['The cat sat on the mat.'])
"""

import dataclasses
import html
from collections.abc import Sequence

from selective_t5x.report import masking, of_checkpoint, packing, page, viewer
from selective_t5x.runs import restore


@dataclasses.dataclass(frozen=True, repr=False)
class Viewer:
  """A page with the viewer, which a notebook shows as a cell's last value.

  Attributes:
    rows: what the model masks in each row; see `masking.Masked`.
    page: the page, HTML that works offline.
    height: of the frame in the notebook, in pixels.
  """

  rows: tuple[masking.Masked, ...]
  page: str
  height: int

  def _repr_html_(self) -> str:
    """Returns the page in a frame; Jupyter calls it."""
    return (
      f'<iframe srcdoc="{html.escape(self.page)}" width="100%" '
      f'height="{self.height}" style="border: 0"></iframe>'
    )


def masking_viewer(
  checkpoint: str,
  texts: Sequence[str] = (),
  *,
  examples: int = 3,
  gin_files: Sequence[str] = (),
  gin_bindings: Sequence[str] = (),
  height: int = 800,
) -> Viewer:
  """Returns the viewer for a trained model.

  Args:
    checkpoint: the folder of a run, or a checkpoint_N in it.
    texts: for a decoder to read; none: rows of the evaluation split.
    examples: number of these rows.
    gin_files: files after the run's own configuration.
    gin_bindings: 'KEY = VALUE' texts, applied last.
    height: of the frame, in pixels.

  Raises:
    UserError: there is no such checkpoint, the model does not select, or a text
      is empty or too long.
  """
  with restore.restored(
    checkpoint, gin_files=gin_files, gin_bindings=gin_bindings
  ) as run:
    rows = of_checkpoint.rows(run, of_checkpoint.batches(run, texts, examples))
    name = run.checkpoint
  return Viewer(
    tuple(rows),
    str(
      page.page(
        title='What selection masks',
        intro=f'{name}, {len(rows)} examples.',
        command=f'notebook.masking_viewer({checkpoint!r}, {list(texts)!r})',
        more=[viewer.section({'': packing.figures(rows)})],
      )
    ),
    height,
  )
