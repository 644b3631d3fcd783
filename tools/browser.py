"""Runs a page in a real, headless Chromium, opened from disk."""

import http.server
import json
import pathlib
import queue
import shutil
import subprocess
import tempfile
import threading

CHROMIUM = shutil.which('chromium')

_CATCH = """<script>
window.problems = [];
addEventListener('error', (e) => problems.push(String(e.message)));
addEventListener('unhandledrejection', (e) => problems.push(String(e.reason)));
console.error = (...words) => problems.push(words.join(' '));
</script>
"""
_TELL = """<script>
(async () => {
  const frame = () => new Promise((done) => requestAnimationFrame(done));
  const until = async (holds) => { while (!holds()) await frame(); };
  let result = null;
  try { result = await (async () => {SCRIPT})(); }
  catch (error) { problems.push(String(error)); }
  await fetch('http://127.0.0.1:PORT/', {
    method: 'POST', mode: 'no-cors', body: JSON.stringify({result, problems}),
  });
})();
</script>
"""


def run(page: str, script: str, *, width: int = 900, seconds: float = 60):
  """Opens a page and runs a script in it.

  Args:
    page: HTML.
    script: the body of an async JavaScript function; it can await `frame()`,
      the next animation frame, and `until(f)`, until f() is true.
    width: width of the window, in pixels.
    seconds: time limit.

  Returns:
    The result of the script, through JSON.

  Raises:
    AssertionError: the page or the script had an error, or took too long.
  """
  posts: queue.Queue = queue.Queue()

  class Listener(http.server.BaseHTTPRequestHandler):
    def do_POST(self):
      posts.put(self.rfile.read(int(self.headers['Content-Length'])))
      self.send_response(204)
      self.end_headers()

    def log_message(self, *_):
      pass

  server = http.server.HTTPServer(('127.0.0.1', 0), Listener)
  threading.Thread(target=server.serve_forever, daemon=True).start()
  tell = _TELL.replace('SCRIPT', script, 1)
  tell = tell.replace('PORT', str(server.server_port), 1)
  with tempfile.TemporaryDirectory() as folder:
    file = pathlib.Path(folder) / 'page.html'
    text = page.replace('<meta charset', f'{_CATCH}<meta charset', 1)
    file.write_text(text.replace('</main>', f'</main>{tell}', 1), 'utf-8')
    process = subprocess.Popen(
      [
        CHROMIUM,
        '--headless',
        '--no-sandbox',
        '--disable-gpu',
        '--disable-dev-shm-usage',
        f'--user-data-dir={folder}/profile',
        f'--window-size={width},1000',
        file.as_uri(),
      ],
      stdout=subprocess.DEVNULL,
      stderr=subprocess.DEVNULL,
    )
    try:
      answer = json.loads(posts.get(timeout=seconds))
    except queue.Empty:
      raise AssertionError(f'no answer in {seconds} seconds') from None
    finally:
      process.terminate()
      process.wait()
      server.shutdown()
      server.server_close()
  assert not answer['problems'], answer['problems']
  return answer['result']
