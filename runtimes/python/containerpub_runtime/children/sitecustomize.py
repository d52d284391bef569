"""For Pythons that a function starts: they find its packages, as the function does, behind the standard library."""

import os
import site
import sys

site.addsitedir(os.environ.get("CONTAINERPUB_PACKAGES", "/dependencies"))
_HERE = os.path.dirname(os.path.abspath(__file__))
sys.path.append(os.path.join(os.path.dirname(os.path.dirname(_HERE)), "sdk"))
