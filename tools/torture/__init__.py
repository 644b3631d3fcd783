"""Breaks runs in many ways, restarts them, and counts the failures.

  python -m tools.torture --faults=60

Tiny real runs of training, of a comparison and of a search for budgets are
killed (SIGKILL), terminated (SIGTERM), started twice, or get a full disk, or
their newest files are truncated or have a bit flipped. Kinds, moments and files
are drawn with --seed. Each command is restarted until it finishes, and compared
with an undisturbed one: parameters, optimiser state, metrics and budgets must
be equal bit for bit, except times.

Every eighth start is `python -m selective_t5x.…`, as for users. The others are
forked from a process that has only done the imports (tools/warm.py), and so are
the runs of a forked comparison. A full disk is a tmpfs if one can be mounted,
else RLIMIT_FSIZE.

The last line is JSON:
  faults: how many were caused; one that came after the end does not count.
  lost_checkpoints: runs whose newest complete checkpoint, or cuts of a search,
    were gone after a start, without a newer one.
  diverged_resumes: runs that differed from the undisturbed one at the end, left
    files on a full disk, or ended with an exit code that the fault does not
    explain.
  hangs: processes that did not end in time.
  tracebacks_shown_to_user: processes that printed one.
"""
