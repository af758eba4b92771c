"""A layer as the planner sees it: records of slots, ranks and experts, exact shares."""
