"""The syntax tree of a chat template, changed before it is compiled: its operations pay for what they work on, by the
filters `weighed`, `counted`, `copied` and `searched` of template_budget.py.
"""

from typing import Any

import jinja2
from jinja2 import nodes
from jinja2.visitor import NodeTransformer


class CountOperations(NodeTransformer):
    """Puts the filters around the parts of a tree."""

    def __init__(self, environment: jinja2.Environment):
        self.environment = environment

    def through(self, name: str, node: Any) -> Any:
        """Returns a node that puts the value of `node` through a filter, once; a constant is no longer than the
        template.
        """
        if isinstance(node, nodes.TemplateData | nodes.Const):
            return node
        if isinstance(node, nodes.Filter) and node.name == name:
            return node
        return nodes.Filter(node, name, [], [], None, None, lineno=node.lineno, environment=self.environment)

    def visit_For(self, node: nodes.For) -> nodes.Node:
        """Lets each item of a loop count."""
        self.generic_visit(node)
        node.iter = self.through("counted", node.iter)
        return node

    def visit_Output(self, node: nodes.Output) -> nodes.Node:
        """Lets what is written count."""
        self.generic_visit(node)
        node.nodes = [self.through("weighed", part) for part in node.nodes]
        return node

    def visit_Concat(self, node: nodes.Concat) -> nodes.Node:
        """Lets texts that ~ puts together count."""
        self.generic_visit(node)
        node.nodes = [self.through("weighed", part) for part in node.nodes]
        return node

    def visit_Add(self, node: nodes.Add) -> nodes.Node:
        """Lets texts and lists that + puts together count."""
        self.generic_visit(node)
        if not isinstance(node.left, nodes.Add):  # whose parts have been paid for
            node.left = self.through("copied", node.left)
        node.right = self.through("copied", node.right)
        return node

    def visit_Compare(self, node: nodes.Compare) -> nodes.Node:
        """Lets comparisons count, but for those with a constant, which are quick; and `in`, always."""
        self.generic_visit(node)
        has_constant = isinstance(node.expr, nodes.Const) or isinstance(node.ops[0].expr, nodes.Const)
        for operand in node.ops:
            if operand.op in ("in", "notin"):
                operand.expr = self.through("searched", operand.expr)
                node.expr = self.through("weighed", node.expr)
            elif not has_constant or len(node.ops) > 1:
                operand.expr = self.through("weighed", operand.expr)
                node.expr = self.through("weighed", node.expr)
        return node

    def visit_Getitem(self, node: nodes.Getitem) -> nodes.Node:
        """Lets a slice, which is a copy, and a key, which is hashed, count."""
        self.generic_visit(node)
        if isinstance(node.arg, nodes.Slice):
            node.node = self.through("copied", node.node)
        else:  # a key is hashed
            node.arg = self.through("weighed", node.arg)
        return node

    def visit_literal(self, node: Any) -> nodes.Node:
        """Lets all that is put into a list, a tuple or an object count, so that none holds another a million times."""
        self.generic_visit(node)
        return node if getattr(node, "ctx", "load") != "load" else self.through("weighed", node)

    visit_List = visit_Tuple = visit_Dict = visit_literal
