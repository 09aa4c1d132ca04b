"""The cluster side of megpt: one file per job, each a thin arrangement of the library on Ray Train or Ray Data.

python -m ray_jobs JOB --config FILE [section.key=value …]
"""

import os

# Read by ray and deepspeed when they are imported, in this process and in every worker it starts.
os.environ.setdefault("RAY_USAGE_STATS_ENABLED", "0")
os.environ.setdefault("RAY_TRAIN_V2_ENABLED", "1")
os.environ.setdefault("RAY_ACCEL_ENV_VAR_OVERRIDE_ON_ZERO", "0")
# Loading and saving in transformers would draw its bars across ours.
os.environ.setdefault("TQDM_DISABLE", "1")
# Ray prints its scheduler's hints into the job's output; what a job waits for it says itself (ray_jobs/runtime.py).
os.environ.setdefault("RAY_SCHEDULER_EVENTS", "0")
# Ray connects by itself at the first call that needs it. A thread that is left over when a job has ended would so join
# the cluster again, and crash the command while it exits.
os.environ.setdefault("RAY_ENABLE_AUTO_CONNECT", "0")
# A job that was killed keeps its claim on the cluster for this long, and the next one gets half of what is there so
# long: Ray Data's actors spread to all of it later. A job that lives renews its claim each 10 s.
os.environ.setdefault("RAY_DATA_AUTOSCALING_REQUEST_EXPIRE_TIME_S", "30")
