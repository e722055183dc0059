"""What an attempt at a unit writes: the plan that it follows, tars, and the commit record that decides."""
