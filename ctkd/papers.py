# SPDX-FileCopyrightText: The ctkd contributors
# SPDX-License-Identifier: MIT
"""The papers behind the built-in plugins."""

from __future__ import annotations

from ctkd.hookspecs import Paper


def _by(text: str) -> tuple[str, ...]:
    return tuple(text.split("; "))


ALPAYDIN = Paper(
    _by("Alpaydin, E.; Kaynak, C."),
    "Optical Recognition of Handwritten Digits (UCI Machine Learning Repository)",
    1998,
    url="https://doi.org/10.24432/C50P49",
)
LECUN = Paper(
    _by("LeCun, Yann; Bottou, Léon; Bengio, Yoshua; Haffner, Patrick"),
    "Gradient-Based Learning Applied to Document Recognition",
    1998,
    "Proceedings of the IEEE 86(11)",
    url="https://doi.org/10.1109/5.726791",
)
KRIZHEVSKY = Paper(
    _by("Krizhevsky, Alex"),
    "Learning Multiple Layers of Features from Tiny Images",
    2009,
    "University of Toronto",
    url="https://www.cs.toronto.edu/~kriz/learning-features-2009-TR.pdf",
)
XIAO = Paper(
    _by("Xiao, Han; Rasul, Kashif; Vollgraf, Roland"),
    "Fashion-MNIST: a Novel Image Dataset for Benchmarking Machine Learning Algorithms",
    2017,
    arxiv="1708.07747",
)
STALLKAMP = Paper(
    _by("Stallkamp, Johannes; Schlipsing, Marc; Salmen, Jan; Igel, Christian"),
    "Man vs. computer: Benchmarking machine learning algorithms for traffic sign recognition",
    2012,
    "Neural Networks 32",
    url="https://doi.org/10.1016/j.neunet.2012.02.016",
)
LE = Paper(
    _by("Le, Ya; Yang, Xuan"),
    "Tiny ImageNet Visual Recognition Challenge",
    2015,
    "Stanford CS231n",
    url="http://cs231n.stanford.edu/reports/2015/pdfs/yle_project.pdf",
)
CHRABASZCZ = Paper(
    _by("Chrabaszcz, Patryk; Loshchilov, Ilya; Hutter, Frank"),
    "A Downsampled Variant of ImageNet as an Alternative to the CIFAR datasets",
    2017,
    arxiv="1707.08819",
)
EDAC = Paper(
    _by("Zhang, Minxing; Backes, Michael; Zhang, Xiao"),
    "Generating Less Certain Adversarial Examples Improves Robust Generalization",
    2023,
    arxiv="2310.04539",
)
ATTA = Paper(
    _by("Zheng, Haizhong; Zhang, Ziqi; Gu, Juncheng; Lee, Honglak; Prakash, Atul"),
    "Efficient Adversarial Training with Transferable Adversarial Examples",
    2020,
    "IEEE/CVF Conference on Computer Vision and Pattern Recognition",
    "1912.11969",
)
GOWAL = Paper(
    _by(
        "Gowal, Sven; Dvijotham, Krishnamurthy; Stanforth, Robert; Bunel, Rudy; Qin, Chongli; Uesato, Jonathan; "
        "Arandjelovic, Relja; Mann, Timothy; Kohli, Pushmeet"
    ),
    "On the Effectiveness of Interval Bound Propagation for Training Verifiably Robust Models",
    2018,
    arxiv="1810.12715",
)
CROWN = Paper(
    _by("Zhang, Huan; Weng, Tsui-Wei; Chen, Pin-Yu; Hsieh, Cho-Jui; Daniel, Luca"),
    "Efficient Neural Network Robustness Certification with General Activation Functions",
    2018,
    "Advances in Neural Information Processing Systems 31",
    "1811.00866",
)
ZHANG = Paper(
    _by(
        "Zhang, Huan; Chen, Hongge; Xiao, Chaowei; Gowal, Sven; Stanforth, Robert; Li, Bo; Boning, Duane; "
        "Hsieh, Cho-Jui"
    ),
    "Towards Stable and Efficient Training of Verifiably Robust Neural Networks",
    2020,
    "International Conference on Learning Representations",
    "1906.06316",
)
XU = Paper(
    _by(
        "Xu, Kaidi; Shi, Zhouxing; Zhang, Huan; Wang, Yihan; Chang, Kai-Wei; Huang, Minlie; Kailkhura, Bhavya; "
        "Lin, Xue; Hsieh, Cho-Jui"
    ),
    "Automatic Perturbation Analysis for Scalable Certified Robustness and Beyond",
    2020,
    "Advances in Neural Information Processing Systems 33",
    "2002.12920",
)
SHI = Paper(
    _by("Shi, Zhouxing; Wang, Yihan; Zhang, Huan; Yi, Jinfeng; Hsieh, Cho-Jui"),
    "Fast Certified Robust Training with Short Warmup",
    2021,
    "Advances in Neural Information Processing Systems 34",
    "2103.15887",
)
MADRY = Paper(
    _by("Madry, Aleksander; Makelov, Aleksandar; Schmidt, Ludwig; Tsipras, Dimitris; Vladu, Adrian"),
    "Towards Deep Learning Models Resistant to Adversarial Attacks",
    2018,
    "International Conference on Learning Representations",
    "1706.06083",
)
EXPRESSIVE = Paper(
    _by(
        "De Palma, Alessandro; Bunel, Rudy; Dvijotham, Krishnamurthy; Kumar, M. Pawan; Stanforth, Robert; "
        "Lomuscio, Alessio"
    ),
    "Expressive Losses for Verified Robustness via Convex Combinations",
    2024,
    "International Conference on Learning Representations",
    "2305.13991",
)
IBP_R = Paper(
    _by("De Palma, Alessandro; Bunel, Rudy; Dvijotham, Krishnamurthy; Kumar, M. Pawan; Stanforth, Robert"),
    "IBP Regularization for Verified Adversarial Robustness via Branch-and-Bound",
    2022,
    arxiv="2206.14772",
)
FORWABS = Paper(
    _by("De Palma, Alessandro; Durand, Serge; Chihani, Zakaria; Terrier, François; Urban, Caterina"),
    "On Using Certified Training towards Empirical Robustness",
    2024,
    arxiv="2410.01617",
)
CC_DIST = Paper(
    _by("De Palma, Alessandro"),
    "Learning Better Certified Models from Empirically-Robust Teachers",
    2026,
    arxiv="2602.02626",
)
# Given names of this one were not found in public text.
AD_CERT = Paper(
    _by("Melis; Martinez del Rincon; Sharma"),
    "Improving Certified Robustness via Adversarial Distillation",
    2026,
    arxiv="2606.31653",
)
HE = Paper(
    _by("He, Kaiming; Zhang, Xiangyu; Ren, Shaoqing; Sun, Jian"),
    "Deep Residual Learning for Image Recognition",
    2016,
    "IEEE Conference on Computer Vision and Pattern Recognition",
    "1512.03385",
)
MUELLER = Paper(
    _by("Müller, Mark Niklas; Eckert, Franziska; Fischer, Marc; Vechev, Martin"),
    "Certified Training: Small Boxes are All You Need",
    2023,
    "International Conference on Learning Representations",
    "2210.04871",
)
MAO = Paper(
    _by("Mao, Yuhao; Müller, Mark Niklas; Fischer, Marc; Vechev, Martin"),
    "Connecting Certified and Adversarial Training",
    2023,
    "Advances in Neural Information Processing Systems 36",
    "2305.04574",
)
SINGLEPROP = Paper(
    _by("Boopathy, Akhilan; Weng, Tsui-Wei; Liu, Sijia; Chen, Pin-Yu; Zhang, Gaoyuan; Daniel, Luca"),
    "Fast Training of Provably Robust Neural Networks by SingleProp",
    2021,
    "AAAI Conference on Artificial Intelligence",
    "2102.01208",
)
TRADES = Paper(
    _by("Zhang, Hongyang; Yu, Yaodong; Jiao, Jiantao; Xing, Eric P.; El Ghaoui, Laurent; Jordan, Michael I."),
    "Theoretically Principled Trade-off between Robustness and Accuracy",
    2019,
    "International Conference on Machine Learning",
    "1901.08573",
)
MART = Paper(
    _by("Wang, Yisen; Zou, Difan; Yi, Jinfeng; Bailey, James; Ma, Xingjun; Gu, Quanquan"),
    "Improving Adversarial Robustness Requires Revisiting Misclassified Examples",
    2020,
    "International Conference on Learning Representations",
    url="https://openreview.net/forum?id=rklOg6EFwS",
)
ARD = Paper(
    _by("Goldblum, Micah; Fowl, Liam; Feizi, Soheil; Goldstein, Tom"),
    "Adversarially Robust Distillation",
    2020,
    "AAAI Conference on Artificial Intelligence",
    "1905.09747",
)
RSLAD = Paper(
    _by("Zi, Bojia; Zhao, Shihao; Ma, Xingjun; Jiang, Yu-Gang"),
    "Revisiting Adversarial Robustness Distillation: Robust Soft Labels Make Student Better",
    2021,
    "IEEE/CVF International Conference on Computer Vision",
    "2108.07969",
)
IAD = Paper(
    _by(
        "Zhu, Jianing; Yao, Jiangchao; Han, Bo; Zhang, Jingfeng; Liu, Tongliang; Niu, Gang; Zhou, Jingren; "
        "Xu, Jianliang; Yang, Hongxia"
    ),
    "Reliable Adversarial Distillation with Unreliable Teachers",
    2022,
    "International Conference on Learning Representations",
    "2106.04928",
)
AKD = Paper(
    _by("Maroto, Javier; Ortiz-Jiménez, Guillermo; Frossard, Pascal"),
    "On the benefits of knowledge distillation for adversarial robustness",
    2022,
    arxiv="2203.07159",
)
B_MTARD = Paper(
    _by("Zhao, Shiji; Wang, Xizhe; Wei, Xingxing"),
    "Mitigating Accuracy-Robustness Trade-off via Balanced Multi-Teacher Adversarial Distillation",
    2023,
    arxiv="2306.16170",
)
ALPHA_CROWN = Paper(
    _by("Xu, Kaidi; Zhang, Huan; Wang, Shiqi; Wang, Yihan; Jana, Suman; Lin, Xue; Hsieh, Cho-Jui"),
    "Fast and Complete: Enabling Complete Neural Network Verification with Rapid and Massively Parallel Incomplete "
    "Verifiers",
    2021,
    "International Conference on Learning Representations",
    "2011.13824",
)
BETA_CROWN = Paper(
    _by("Wang, Shiqi; Zhang, Huan; Xu, Kaidi; Lin, Xue; Jana, Suman; Hsieh, Cho-Jui; Kolter, J. Zico"),
    "Beta-CROWN: Efficient Bound Propagation with Per-neuron Split Constraints for Complete and Incomplete Neural "
    "Network Robustness Verification",
    2021,
    "Advances in Neural Information Processing Systems 34",
    "2103.06624",
)
BABSR = Paper(
    _by("Bunel, Rudy; Lu, Jingyue; Turkaslan, Ilker; Torr, Philip H. S.; Kohli, Pushmeet; Kumar, M. Pawan"),
    "Branch and Bound for Piecewise Linear Neural Network Verification",
    2020,
    "Journal of Machine Learning Research",
    "1909.06588",
)
FSB = Paper(
    _by(
        "De Palma, Alessandro; Bunel, Rudy; Desmaison, Alban; Dvijotham, Krishnamurthy; Kohli, Pushmeet; "
        "Torr, Philip H. S.; Kumar, M. Pawan"
    ),
    "Improved Branch and Bound for Neural Network Verification via Lagrangian Decomposition",
    2021,
    arxiv="2104.06718",
)
