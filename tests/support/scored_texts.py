"""Texts to score: words to draw from, and texts that have tripped tokenizers, terminals and JSON."""

WORDS = ["the", "the", "disk", "sda1", "failed", "at", "10.0.0.1", "with", "error", "5", "twice", "is", "full"]
WORDS += ["-", ".", "...", "[eth0]:", "Restart,", "restart"]

SPECIAL = [
    "",
    " ",
    "\n",
    "\n\n\n",
    "a",
    "A",
    "7",
    "...",
    "?! -- \n ** ~~ \n",
    "a\n\n\nb\n",
    "\r\n",
    "a\r\nb\rc\u2028d\x85e",
    "日志显示磁盘已满",
    "日志 显示 error 5",
    "e\u0301 é e\u0301\u0302",
    "👩‍👩‍👧 🔥 disk",
    "خطأ في القرص sda1",
    "\ud800",
    "disk \udfff full",
    "\x00\x01\x1b[31mred\x7f",
    "foo-\nbar",
    "foo-\n",
    "&quot;x&quot; &amp;lt; <skipped> $1,000.5",
    "ΣΑΣ ΟΔΟΣ",
    "İİ i\u0307 \u212a k",
    "{}",
    '```json\n{"a": 1}\n```',
    "the the the the the",
    "a b " * 40,
    "\n".join("ab" * 30),
]
