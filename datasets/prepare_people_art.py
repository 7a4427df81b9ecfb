#!/usr/bin/env python
"""Write COCO annotations of a pair of domains with people: photos, and paintings and cartoons.

    python datasets/prepare_people_art.py [ROOT]

ROOT is the folder that holds the checkouts PeopleArt, vocpose and yolov1; default: `people_art` where data sets are
looked for. datasets/README.md says where they come from.
"""

import sys

from lossmix_det.commands.options import run_tool
from lossmix_det.commands.prepare_people_art import main

if __name__ == "__main__":
    sys.exit(run_tool(main))
