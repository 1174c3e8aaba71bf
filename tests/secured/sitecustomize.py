"""What child processes of tests begin with when all brokers are secured: this folder is first on their path then."""

import os

if "SECURED_BROKERS" in os.environ:
    from tests.secured.accounts import patch_all

    patch_all()
