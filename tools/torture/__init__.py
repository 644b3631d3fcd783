"""Breaks runs in every way that it knows, starts them again, and counts.

  python -m tools.torture --faults=60

Tiny real runs of training, of a comparison and of a search for budgets are
killed (SIGKILL), terminated (SIGTERM), started twice, given a full disk, and
what they saved last is cut off or has a bit flipped; kinds, moments and files
are drawn with --seed. Each is started again until it is finished, and compared
with an undisturbed one: parameters, optimiser state, metrics and budgets have
to be equal bit for bit, times apart.

Every eighth start is `python -m selective_t5x.…` as users have it, whatever
befalls it. The others are forked from a process that has done the imports alone
(tools/warm.py), and so are the runs of a forked comparison. A full disk is
a tmpfs where one can be mounted, else RLIMIT_FSIZE.

The last line is JSON:
  faults: how many were caused. What came too late, after the end, is none.
  lost_checkpoints: runs whose newest whole checkpoint, or cuts of a search,
    were gone with none newer after a start.
  diverged_resumes: runs that were not equal to the undisturbed one in the end,
    left something on a full disk, or ended with an exit code that the fault
    does not explain.
  hangs: processes that did not end in time.
  tracebacks_shown_to_user: processes that printed one.
"""
