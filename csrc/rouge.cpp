// The hits of ROUGE-Lsum (Lin 2004, section 3.2): the tokens of the reference that are in a longest common subsequence
// (LCS) of their line with any line of the prediction, no token counted more often than the prediction has it.
//
// Which of several LCSs is taken changes the union, so the choice is that of the package rouge_score. The function
// union_lcs_hits_reference in logtrain/evaluation/rouge.py follows the same rules: the results are equal.

#define PY_SSIZE_T_CLEAN
#include <Python.h>

#include <algorithm>
#include <cstdint>
#include <new>
#include <stdexcept>
#include <unordered_map>
#include <vector>

namespace {

using Line = std::vector<long>;  // ids of tokens: two tokens are equal where their ids are

// Marks in `taken` those tokens of a reference's line that are in its LCS with a prediction's line.
//
// The table takes 4 bytes for each pair of their tokens: 400 MB for two lines of 10,000.
void mark_lcs(const Line& reference, const Line& prediction, std::vector<bool>& taken) {
    const size_t num_rows = reference.size() + 1, num_columns = prediction.size() + 1;
    std::vector<int32_t> table(num_rows * num_columns, 0);
    // The length of the LCS of the first i tokens of the reference and the first j of the prediction.
    const auto length = [&](size_t i, size_t j) -> int32_t& { return table[i * num_columns + j]; };

    for (size_t i = 1; i < num_rows; ++i)
        for (size_t j = 1; j < num_columns; ++j)
            length(i, j) = reference[i - 1] == prediction[j - 1] ? length(i - 1, j - 1) + 1
                                                                 : std::max(length(i - 1, j), length(i, j - 1));

    for (size_t i = num_rows - 1, j = num_columns - 1; i > 0 && j > 0;) {
        if (reference[i - 1] == prediction[j - 1]) {
            taken[--i] = true;
            --j;
        } else if (length(i, j - 1) > length(i - 1, j)) {
            --j;
        } else {
            --i;
        }
    }
}

long union_lcs_hits(const std::vector<Line>& prediction, const std::vector<Line>& reference) {
    std::unordered_map<long, long> unused;  // how often each token of the prediction may still be hit
    for (const Line& line : prediction)
        for (const long token : line) ++unused[token];

    long hits = 0;
    for (const Line& line : reference) {
        std::vector<bool> taken(line.size(), false);
        for (const Line& predicted : prediction) mark_lcs(line, predicted, taken);
        for (size_t i = 0; i < line.size(); ++i)
            if (taken[i] && unused[line[i]]-- > 0) ++hits;
    }
    return hits;
}

// Reads a list of lists of integers. False, with a Python error set, when `object` is something else.
bool read_lines(PyObject* object, const char* name, std::vector<Line>& lines) {
    if (!PyList_Check(object)) return PyErr_Format(PyExc_TypeError, "%s must be a list of lists", name), false;
    lines.resize(size_t(PyList_GET_SIZE(object)));
    for (size_t i = 0; i < lines.size(); ++i) {
        PyObject* line = PyList_GET_ITEM(object, Py_ssize_t(i));
        if (!PyList_Check(line)) return PyErr_Format(PyExc_TypeError, "line %zu of %s is no list", i, name), false;
        lines[i].resize(size_t(PyList_GET_SIZE(line)));
        for (size_t j = 0; j < lines[i].size(); ++j) {
            lines[i][j] = PyLong_AsLong(PyList_GET_ITEM(line, Py_ssize_t(j)));
            if (lines[i][j] == -1 && PyErr_Occurred()) return false;
        }
    }
    return true;
}

PyObject* py_union_lcs_hits(PyObject*, PyObject* args) {
    PyObject *prediction_object, *reference_object;
    if (!PyArg_ParseTuple(args, "OO:union_lcs_hits", &prediction_object, &reference_object)) return nullptr;
    try {
        std::vector<Line> prediction, reference;
        if (!read_lines(prediction_object, "prediction", prediction)) return nullptr;
        if (!read_lines(reference_object, "reference", reference)) return nullptr;
        return PyLong_FromLong(union_lcs_hits(prediction, reference));
    } catch (const std::bad_alloc&) {
        return PyErr_NoMemory();
    } catch (const std::length_error&) {  // a table of more cells than there can be
        return PyErr_NoMemory();
    }
}

constexpr char kDoc[] =
    "union_lcs_hits(prediction, reference) -> hits\n\n"
    "Both are lists of lines, a line is a list of token ids. TypeError for anything else.";

PyMethodDef methods[] = {
    {"union_lcs_hits", py_union_lcs_hits, METH_VARARGS, kDoc},
    {nullptr, nullptr, 0, nullptr},
};

PyModuleDef_Slot slots[] = {
#ifdef Py_mod_gil
    {Py_mod_gil, Py_MOD_GIL_NOT_USED},  // free-threaded Python need not switch its lock back on for this module
#endif
    {0, nullptr},
};

PyModuleDef module = {
    PyModuleDef_HEAD_INIT,
    "logtrain._rouge",
    "The hits of ROUGE-Lsum.",
    0,  // no state
    methods,
    slots,
    nullptr,
    nullptr,
    nullptr,
};

}  // namespace

PyMODINIT_FUNC PyInit__rouge() { return PyModuleDef_Init(&module); }
