"""One thread (the models are tiny), quiet libraries, and hypothesis without deadlines: a first example may compile."""

import torch
from hypothesis import HealthCheck, settings
from transformers.utils import logging as transformers_logging

from tests.postgresql import pgbouncer as pgbouncer  # fixtures
from tests.postgresql import postgresql as postgresql

torch.set_num_threads(1)
transformers_logging.set_verbosity_error()
transformers_logging.disable_progress_bar()
settings.register_profile(
    "deltamem", deadline=None, max_examples=25, suppress_health_check=[HealthCheck.too_slow, HealthCheck.data_too_large]
)
settings.load_profile("deltamem")
