// The rows of the file, as the server has them.

export class Rows {
  // Reads which there are.
  static async read() {
    const rows = new Rows();
    Object.assign(rows, await asked("review/rows"));
    return rows;
  }

  get count() {
    return this.verdicts.length;
  }

  // How many are decided.
  get decided() {
    return this.verdicts.filter((verdict) => verdict !== "open").length;
  }

  // The next row of a kind ("": of any) from a row on, by 1 or -1; null where there is none.
  next(from, by, which) {
    for (let row = from + by; row >= 0 && row < this.count; row += by) {
      if (!which || this.verdicts[row] === which) return row;
    }
    return null;
  }

  async parts(row) {
    return asked(`review/rows/${row}`);
  }

  // Comes back when the decision is on the disk.
  async decide(row, verdict, edits, note) {
    await asked(`review/rows/${row}`, { verdict, edits, note });
    this.verdicts[row] = verdict;
  }
}

async function asked(path, body) {
  const headers = { "Content-Type": "application/json" };
  const reply = await fetch(path, body === undefined ? {} : { method: "POST", headers, body: JSON.stringify(body) });
  const facts = await reply.json().catch(() => ({}));
  if (!reply.ok) throw new Error(facts.error?.message || `status ${reply.status}`);
  return facts;
}
