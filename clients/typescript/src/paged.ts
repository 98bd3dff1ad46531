/** A page from the service, and the cursor of the next one. */
export interface PageRead<Page> {
  page: Page;
  next: string | undefined;
}

/**
 * A list that is read page by page while it is iterated: `for await (const order of client.listOrders())`.
 *
 * `pages()` iterates over the pages, for example to show them, or to store the `next_cursor` of each.
 */
export class Paged<Item, Page> implements AsyncIterable<Item> {
  constructor(
    private readonly read: (cursor: string | undefined) => Promise<PageRead<Page>>,
    private readonly items: (page: Page) => Item[],
  ) {}

  async *pages(): AsyncGenerator<Page, void> {
    let cursor: string | undefined;
    do {
      const { page, next } = await this.read(cursor);
      yield page;
      cursor = next;
    } while (cursor !== undefined);
  }

  async *[Symbol.asyncIterator](): AsyncGenerator<Item, void> {
    for await (const page of this.pages()) yield* this.items(page);
  }
}
