"""What the text of a class's constructor says of parameters that no code can be run for again.

A constructor's arguments are gone when a model is there, so it cannot be run again. Statements that set a constant can
be read: `nn.init.constant_(self.head.bias, -4.6)`, `self.lstm.bias_hh_l0.data[4:8].fill_(1)`. A statement is
understood, or makes unknown what it may have set; nothing but arithmetic and methods of strings is executed. Loops over
what is below a module are read round by round.

How a parameter is made is read, too: `nn.Parameter(0.1 * torch.ones(size))` is constant, and `nn.Parameter(points)`
holds what somebody gave. `torch.empty` and random draws are placeholders. For the weight of a map, `torch.zeros` may be
one, too.

Code that a constructor calls without arguments of its own, such as `self.init_biases()`, `head.bias_init()` and
`self.apply(self._init_weights)`, can be run again: it is told to whoever reads reset code (capture/resetting.py).
"""

from fastinit.capture.constructors.scripts import Told
from fastinit.capture.constructors.told import any_runs, runs_of, set_after, set_before, told_of

__all__ = ["Told", "any_runs", "runs_of", "set_after", "set_before", "told_of"]
