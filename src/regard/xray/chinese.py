"""What the backends say, in Chinese, for the page and its readers. A sentence that is not here stays English."""

from __future__ import annotations

_SENTENCES = {
    "plain torch operations; memory grows with q_len x kv_len": "普通 torch 运算；内存随 查询数 × 键数 增长",
    "fused kernel": "融合内核",
    "fused kernel over a dense mask of q_len x kv_len": "融合内核，但要用 查询数 × 键数 的稠密掩码",
    "exact, but a value of another width takes its unfused path: memory grows with q_len x kv_len": (
        "结果精确，但 value 宽度不同时走非融合路径：内存随 查询数 × 键数 增长"
    ),
    "exact, but a bias that needs a gradient takes its unfused path: memory grows with q_len x kv_len": (
        "结果精确，但需要梯度的偏置走非融合路径：内存随 查询数 × 键数 增长"
    ),
    "it has no softcap": "没有 softcap",
    "it has no sink": "没有 sink",
    "it has no dropout": "没有 dropout",
    "it takes no empty input": "不接受空输入",
    "it has no backward on CPU; detach the inputs or use torch.no_grad()": (
        "在 CPU 上没有反向传播；请 detach 输入或使用 torch.no_grad()"
    ),
    "its kernels have no float64": "其内核不支持 float64",
    "query, key or value holds NaN or Inf, which its kernels turn to zeros or leak": (
        "query、key 或 value 含 NaN 或 Inf，其内核会把它们变成零或泄漏出去"
    ),
    "query, key or value holds NaN or Inf, which it lets through the mask": (
        "query、key 或 value 含 NaN 或 Inf，它会让其穿过掩码"
    ),
    "fused kernel that skips masked blocks; the first call compiles for seconds": (
        "融合内核，跳过被掩蔽的块；首次调用要编译数秒"
    ),
    "unfused below 4 M scores, where compiling would cost more than it saves": (
        "分数少于 400 万时不融合：编译得不偿失"
    ),
    "fused kernel that skips masked blocks; memory grows with length": "融合内核，跳过被掩蔽的块；内存随长度线性增长",
    "it has no rule for torch.func's transforms (vmap, grad, jvp)": "不支持 torch.func 的变换（vmap、grad、jvp）",
    "it has no forward-mode derivative": "没有前向模式导数",
    "it has no gradient through an Inf in query, key or value": "query、key 或 value 含 Inf 时没有梯度",
    "its indices are 32 bits wide": "其下标只有 32 位",
    "the model's setting: torch's fused kernel": "模型的设置：torch 的融合内核",
    "the model's setting: torch's unfused path; memory grows with q_len x kv_len": (
        "模型的设置：torch 的非融合路径；内存随 查询数 × 键数 增长"
    ),
    "the model's setting: plain torch operations; memory grows with q_len x kv_len": (
        "模型的设置：普通 torch 运算；内存随 查询数 × 键数 增长"
    ),
    "the model's setting": "模型的设置",
    "the module's own path": "模块自己的路径",
}


def in_chinese(sentence: str) -> str:
    """The sentence in Chinese, or itself."""
    return _SENTENCES.get(sentence, sentence)
