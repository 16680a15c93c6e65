"""The optimizer of matrices."""
import math

import torch
import torch.nn.functional as F

from model import distributed, gather, rank

class Muon(torch.optim.Optimizer):
    """Momentum, made orthogonal (each singular value about 1), with the step size of AdamW. Muon:
    Jordan 2024; scale .2 sqrt(max side): 2502.16982. Matrices of one shape are made so together,
    and in float32 on a CPU (torch.optim.Muon: one by one, in bfloat16, which a CPU without such
    instructions emulates: it took two thirds of a small model's step)."""
    def __init__(self, params, lr, decay, compiled=False, momentum=.95):
        super().__init__(params, dict(lr=lr, weight_decay=decay, momentum=momentum))
        # a version for each shape; the default is eight, beyond which it would go on eager
        self.orthogonal = (torch.compile(orthogonal, dynamic=False, recompile_limit=64)
                           if compiled else orthogonal)

    @torch.no_grad()
    def step(self):
        for group in self.param_groups:
            shapes = {}
            for p in group['params']:
                if p.grad is not None:
                    shapes.setdefault(p.shape, []).append(p)
            for params in shapes.values():
                self.step_together(params, group['lr'], group['weight_decay'], group['momentum'])

    def step_together(self, params, lr, decay, momentum):
        """One step of matrices of the same shape."""
        for p in params:
            if not self.state[p]:
                self.state[p]['momentum_buffer'] = torch.zeros_like(p)
        moved = [self.state[p]['momentum_buffer'] for p in params]
        torch._foreach_lerp_(moved, [p.grad for p in params], 1 - momentum)
        ahead = [p.grad.lerp(m, momentum) for p, m in zip(params, moved)]          # Nesterov
        update = self.together(torch.stack(ahead)).to(params[0].dtype)
        torch._foreach_mul_(params, 1 - lr * decay)
        torch._foreach_add_(params, list(update), alpha=-lr * .2 * math.sqrt(max(params[0].shape)))

    def together(self, G):
        """orthogonal, of which each rank computes its share."""
        if not distributed():
            return self.orthogonal(G)
        world = torch.distributed.get_world_size()
        n = math.ceil(len(G) / world)
        padded = F.pad(G, (0, 0, 0, 0, 0, n * world - len(G)))
        return gather(self.orthogonal(padded[n * rank():][:n]))[:len(G)]

def orthogonal(G):
    """Matrices (n, R, C) -> with the same singular vectors and singular values near 1, by five
    Newton-Schulz steps."""
    tall = G.shape[1] > G.shape[2]
    X = G.bfloat16() if G.is_cuda else G.float()
    X = X.mT if tall else X
    X = X / (X.norm(dim=(1, 2), keepdim=True) + 1e-7)
    for _ in range(5):
        A = X @ X.mT
        X = 3.4445 * X + (-4.7750 * A + 2.0315 * A @ A) @ X
    return X.mT if tall else X
