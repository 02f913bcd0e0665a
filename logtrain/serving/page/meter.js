// Counts the tokens of what is to be sent, and tells how many are left.

const shown = (count) => count.toLocaleString("en");

export class Meter {
  // place: the element that shows it. excess: tokens too many at the last count.
  constructor(place, server) {
    Object.assign(this, { place, server, excess: 0, number: 0 });
  }

  // -> what is wrong, "" where nothing is, null where a later count has begun. Throws what a server answers with an error.
  async count(model, messages, attached, most) {
    const number = (this.number += 1);
    try {
      const { count, isExact } = await this.server.count(model, { messages });
      if (number !== this.number) return null;
      return this.show(count + attached, isExact ? "" : "about ", this.server.contextSize(model), most);
    } catch (error) {
      if (number === this.number) this.place.textContent = "";
      if (error.status !== undefined) throw error;
      return null;
    }
  }

  show(used, about, size, most) {
    this.excess = size ? used + most - size : 0;
    const left = size ? ` of ${shown(size)}; ${shown(Math.max(size - used, 0))} left` : "";
    this.place.textContent = `${about}${shown(used)} tokens${left}`;
    this.place.classList.toggle("wrong", this.excess > 0);
    if (this.excess <= 0) return "";
    const why = `${about}${shown(used)} tokens and an answer of up to ${shown(most)}`;
    return `Too long: ${why} are ${shown(this.excess)} more than the model has room for. Shorten the question, begin anew, or allow a shorter answer.`;
  }
}
