"""Size of a page with the masking viewer, and the time of its steps.

  make bench-report

The report's own code makes a page of three examples of 1,024 tokens and 12
layers. F is synthetic: a tenth of each token's scores is positive, exponential,
and larger for some keys than for others. If there is a headless Chromium, the
viewer steps through the queries in it. A step is timed until the second
animation frame after it, when the first has been painted. The last line is
JSON; repaint_ms is the median, null without Chromium.
"""

import json
import statistics

import numpy as np

from selective_t5x.report import masking, packing, page, viewer
from tools import browser

EXAMPLES, LAYERS, LENGTH, STEPS = 3, 12, 1024, 60
_SCRIPT = """
const press = (key) => document.body.dispatchEvent(
  new KeyboardEvent('keydown', {key, bubbles: true}));
await until(() => document.getElementById('m-masking').width === LENGTH);
const times = [];
for (let i = 0; i < STEPS; i++) {
  const start = performance.now();
  press('ArrowLeft');
  await frame();
  await frame();
  times.push(performance.now() - start);
}
return times;
"""


def synthetic(seed: int) -> masking.Masked:
  """Returns a sequence of LENGTH tokens that masks more and more keys."""
  rng = np.random.default_rng(seed)
  shape = (LENGTH, LENGTH)
  layers = []
  for _ in range(LAYERS):
    scores = rng.exponential(rng.exponential(0.3, LENGTH), shape)
    scores *= np.tril(rng.random(shape) < 0.1, -1)
    scores[:, 0] = 0
    layers.append(np.cumsum(scores, axis=0) - scores)
  f = np.stack(layers)
  visible = np.tril(np.ones(shape, bool))
  logits = np.where(visible, rng.normal(0, 2, (LAYERS, *shape)), -np.inf)

  def weights(logits):
    powers = np.exp(logits - logits.max(axis=-1, keepdims=True))
    return powers / powers.sum(axis=-1, keepdims=True)

  return masking.Masked(
    tokens=tuple(f' {word}' for word in rng.integers(0, 5000, LENGTH)),
    masking=f,
    attention=weights(logits - f),
    attention_off=weights(logits),
    evicted={
      budget: rng.integers(0, LENGTH, (LAYERS, LENGTH))
      for budget in (512, 256, 128, 64, 32, 16, 8, 6, 4, 3, 2)
    },
    temperatures={},
    visible=rng.random(LAYERS),
  )


def main() -> None:
  """Runs the benchmark."""
  rows = [synthetic(seed) for seed in range(EXAMPLES)]
  figures = packing.figures(rows)
  more = [viewer.section({'': figures})]
  text = page.page('Benchmark', '', 'none', more=more)
  script = _SCRIPT.replace('LENGTH', str(LENGTH)).replace('STEPS', str(STEPS))
  repaint = None
  if browser.CHROMIUM is not None:
    times = browser.run(text, script, seconds=300)
    print(f'a step: {min(times):.1f} to {max(times):.1f} ms')
    repaint = round(statistics.median(times), 1)
  megabytes = round(len(text.encode()) / 1e6, 2)
  print(json.dumps({'page_mb': megabytes, 'repaint_ms': repaint}))


if __name__ == '__main__':
  main()
