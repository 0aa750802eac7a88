"""What tests of several files use."""

from torch import nn


class Net(nn.Module):
    """Parts by name, and what to do with them: `run(self, *args, **kwargs)`."""

    def __init__(self, run, **parts):
        super().__init__()
        self.run = run
        for name, part in parts.items():
            setattr(self, name, part)

    def forward(self, *args, **kwargs):
        return self.run(self, *args, **kwargs)
